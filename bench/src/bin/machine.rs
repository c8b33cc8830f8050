//! What the key/value state machine costs: a put applied, and a state encoded as a snapshot.
//!
//! `cargo run --release --manifest-path bench/Cargo.toml --bin machine`: one thread, no log, no
//! disk. Puts as the client library sends them: each with the number of its client, who acknowledges
//! the one before, and with a value of 256 bytes under a random one of so many keys.

use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use flotilla_bench::cpu;
use kvd::KvMachine;
use kvd::command::{ClientId, Command, Condition, Operation, RequestId};
use kvd::outcome::ShardTime;
use raft::{Applied, Capture, GroupTime, Index, StateMachine, Term};

const SHARDS: u32 = 256;
const VALUE: [u8; 256] = [7; 256];

/// How many puts are encoded before they are applied, so that only applying is measured.
const BATCH: u64 = 1_000;

/// How long a request may be asked again.
const RETRIED_MS: u64 = 60_000;

#[derive(Parser, Debug)]
struct Arguments {
    /// Over how many keys the puts are spread
    #[arg(long, value_delimiter = ',', default_value = "10000,1000000")]
    keys: Vec<u64>,
    /// How many clients there are
    #[arg(long, default_value_t = 256)]
    clients: u64,
    /// How many puts are measured
    #[arg(long, default_value_t = 1_000_000)]
    puts: u64,
    /// How often; the medians are printed
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// A machine and what was applied to it.
struct Member {
    machine: KvMachine,
    keys: u64,
    /// The last sequence of each client in each shard.
    sequences: Vec<u64>,
    index: u64,
    random: u64,
}

fn main() {
    let arguments = Arguments::parse();
    println!(
        "| keys | ns a put | ns a put, while a snapshot holds the state | ns a pair of a snapshot |"
    );
    println!("|---:|---:|---:|---:|");
    for &keys in &arguments.keys {
        measure(&arguments, keys.max(1));
    }
}

fn measure(arguments: &Arguments, keys: u64) {
    let clients = arguments.clients.max(1);
    let mut member = Member {
        machine: KvMachine::new(SHARDS),
        keys,
        sequences: vec![0; clients as usize * SHARDS as usize],
        index: 0,
        random: 1,
    };
    member.put(2 * keys);
    let (mut alone, mut held, mut encoded) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..arguments.rounds.max(1) {
        alone.push(member.put(arguments.puts));
        let capture = member.machine.capture();
        held.push(member.put(arguments.puts));
        let pairs = member.machine.pairs();
        let before = cpu::time();
        let bytes: usize = capture.chunks().map(|chunk| chunk.len()).sum();
        assert!(bytes > 0, "a snapshot of nothing");
        encoded.push((cpu::time() - before).as_nanos() as u64 / pairs);
    }
    let [alone, held, encoded] = [alone, held, encoded].map(median);
    println!("| {keys} | {alone} | {held} | {encoded} |");
}

impl Member {
    /// Applies so many puts; how many nanoseconds each took.
    fn put(&mut self, puts: u64) -> u64 {
        let mut spent = Duration::ZERO;
        let mut left = puts.max(1);
        while left > 0 {
            let batch: Vec<Bytes> = (0..left.min(BATCH)).map(|_| self.command()).collect();
            left -= batch.len() as u64;
            let before = cpu::time();
            for command in batch {
                self.index += 1;
                let (index, time) = (Index(self.index), GroupTime(self.index / 20));
                let at = Applied { index, term: Term(1), time };
                let response = self.machine.apply(at, &command);
                assert!(response.result.is_ok(), "{response:?}");
            }
            spent += cpu::time() - before;
        }
        spent.as_nanos() as u64 / puts.max(1)
    }

    fn command(&mut self) -> Bytes {
        let key = format!("bench/{:010}", self.draw() % self.keys);
        let shard = proto::shard_of(key.as_bytes(), SHARDS);
        let client = self.draw() % (self.sequences.len() as u64 / u64::from(SHARDS));
        let sequence = &mut self.sequences[(client * u64::from(SHARDS)) as usize + shard as usize];
        let acknowledged = *sequence;
        *sequence += 1;
        let id = RequestId {
            client: ClientId(u128::from(client + 1).to_be_bytes()),
            sequence: *sequence,
            acknowledged,
            expires: ShardTime(self.index / 20 + RETRIED_MS),
        };
        let condition = Condition::Always;
        let put = Operation::Put { key: key.as_bytes(), value: &VALUE, condition, lease: None };
        Command { id: Some(id), ..Command::new(SHARDS, put) }.encode()
    }

    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.random >> 33
    }
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}
