//! `shardctl status`: where each shard is and who the groups are, as the controller knows it, and
//! what only the groups know: keys, bytes, requests, changes, leaders, lag.
//!
//! The controller is asked first; then all groups beside each other ([`survey`]). What they say is
//! put together ([`view`]) and shown ([`text`], [`value`]). A group that is silent is named, and is no
//! failure of the command: the controller has answered.

mod survey;
mod text;
mod value;
mod view;

use std::{io::IsTerminal, time::Duration};

use client::ShardClient;
use daemon::{Failure, output::Output, units};
use tokio::time::{Instant, sleep_until};

use self::view::{Look, View};
use super::refused;
use crate::picture;

/// How far the two looks lie apart that requests and changes are counted between.
const RATES_INTERVAL: Duration = Duration::from_secs(1);

/// Moves the cursor to the top and clears what is below.
const CLEAR: &str = "\u{1b}[H\u{1b}[J";

/// The arguments of `shardctl status`.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Arguments {
    /// Ask one member of the controller for what it knows, without its leader
    #[arg(long)]
    stale: bool,
    /// List each shard, with its keys, bytes and revision
    #[arg(long)]
    shards: bool,
    /// Look twice, a second apart, and tell how many requests and changes there were in between
    #[arg(long)]
    rates: bool,
    /// Show it again and again, with requests and changes in between, until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// How often with --watch
    #[arg(long, value_name = "DURATION", value_parser = units::milliseconds, default_value = "2s")]
    interval: u64,
    /// How long to wait for each group; one that does not answer is named
    #[arg(long, value_name = "DURATION", value_parser = units::milliseconds, default_value = "2s")]
    group_timeout: u64,
}

pub(super) async fn run(
    client: &ShardClient,
    arguments: &Arguments,
    output: Output,
) -> Result<(), Failure> {
    let limit = Duration::from_millis(arguments.group_timeout);
    let mut before: Option<Look> = None;
    loop {
        let began = Instant::now();
        let state = client.query(None, arguments.stale).await.map_err(refused)?;
        let told = survey::ask(&state.groups, limit).await;
        let first_of_two = arguments.rates && !arguments.watch && before.is_none();
        if !first_of_two {
            show(&View::of(&state, &told, before.as_ref()), arguments, output)?;
        }
        if !first_of_two && !arguments.watch {
            return Ok(());
        }
        before = Some(Look::of(&told));
        let interval = match arguments.watch {
            true => Duration::from_millis(arguments.interval),
            false => RATES_INTERVAL,
        };
        sleep_until(began + interval).await;
    }
}

fn show(view: &View<'_>, arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let mut text = text::text(view, arguments.shards, picture::may_have_colours());
    if arguments.watch && std::io::stdout().is_terminal() {
        text.insert_str(0, CLEAR);
    } else if arguments.watch {
        text.push('\n');
    }
    output.result(&text, &value::value(view))
}
