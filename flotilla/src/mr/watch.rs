//! Follows a job to its end: a line that is drawn again and again on a terminal, elsewhere a line
//! every five seconds and at each change of state.

use std::time::Duration;

use client::JobClient;
use daemon::progress::Progress;
use daemon::{Code, Failure};
use proto::mapreduce::{Job, JobState, TaskProgress};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, interval};

use super::{show, state_name, told};
use crate::output::{Output, refused};
use crate::units;

/// How often the line on a terminal is drawn.
const DRAW_INTERVAL: Duration = Duration::from_millis(250);

/// Waits for the job's end, showing its progress on stderr, and tells the result on stdout.
///
/// # Errors
/// Failed or cancelled, as the job was; interrupted, when the user did not want to wait for it.
pub(super) async fn to_the_end(jobs: &JobClient, job: Job, output: Output) -> Result<(), Failure> {
    let mut interrupts = signal(SignalKind::interrupt())
        .map_err(|error| Failure::new(Code::Failed, "no signals are received").because(error))?;
    let mut shown = Shown::new(&job);
    let id = job.id.clone();
    let ended = follow(jobs, job, &mut interrupts, &mut shown).await;
    shown.progress.finish();
    let Some(job) = ended? else {
        return Err(Failure::new(
            Code::Interrupted,
            format!(
                "the job {id} goes on; see how it does with: flotilla mr get {id}, or stop it \
                 with: flotilla mr cancel {id}"
            ),
        ));
    };
    conclude(&job, output)
}

/// The job when it has ended; none when the user did not want to wait.
async fn follow(
    jobs: &JobClient,
    mut job: Job,
    interrupts: &mut Signal,
    shown: &mut Shown,
) -> Result<Option<Job>, Failure> {
    let mut draws = interval(DRAW_INTERVAL);
    while !has_ended(job.state()) {
        let id = job.id.clone();
        // 0 would mean not to wait.
        let newer = jobs.get(&id, job.version.max(1));
        tokio::pin!(newer);
        job = loop {
            tokio::select! {
                biased;
                _ = interrupts.recv() => return Ok(None),
                found = &mut newer => break found.map_err(refused)?,
                _ = draws.tick() => shown.draw(&job),
            }
        };
        shown.draw(&job);
    }
    Ok(Some(job))
}

pub(crate) fn has_ended(state: JobState) -> bool {
    match state {
        JobState::Succeeded | JobState::Failed | JobState::Cancelled => true,
        JobState::Unspecified
        | JobState::Queued
        | JobState::Planning
        | JobState::Mapping
        | JobState::Reducing
        | JobState::Committing
        | JobState::Failing
        | JobState::Cancelling => false,
    }
}

/// Tells how the job ended.
///
/// # Errors
/// Failed or cancelled, as the job was.
pub(super) fn conclude(job: &Job, output: Output) -> Result<(), Failure> {
    let state = state_name(job.state());
    let took = show::took(job)
        .map_or_else(String::new, |took| format!(" after {}", units::duration(took)));
    let mut text = format!("{} {state}{took}", job.id);
    if job.state() == JobState::Succeeded {
        text.push_str(&format!("; {} files of results:", job.outputs.len()));
        text.extend(job.outputs.iter().map(|name| format!("\n  {name}")));
    }
    output.result(&text, &told::job(job))?;
    match job.state() {
        JobState::Failed => {
            let why = job.failure.as_ref().map_or_else(|| "failed".to_owned(), told::explain);
            Err(Failure::new(Code::Failed, format!("the job {} {why}", job.id)))
        }
        JobState::Cancelled => {
            Err(Failure::new(Code::Cancelled, format!("the job {} was cancelled", job.id)))
        }
        _ => Ok(()),
    }
}

/// How far a job has come, for people who wait.
struct Shown {
    progress: Progress,
    began: Instant,
    /// The input that was mapped when it began to be watched, in bytes.
    mapped_before: u64,
    /// The most maps and reduces that were ever committed.
    most: (u32, u32),
}

impl Shown {
    fn new(job: &Job) -> Self {
        let (progress, began) = (Progress::default(), Instant::now());
        let mapped_before = tasks(job.maps).bytes_committed;
        let mut shown = Self { progress, began, mapped_before, most: (0, 0) };
        shown.draw(job);
        shown
    }

    fn draw(&mut self, job: &Job) {
        let (maps, reduces) = (tasks(job.maps), tasks(job.reduces));
        self.most = (self.most.0.max(maps.committed), self.most.1.max(reduces.committed));
        let mapped = maps.bytes_committed.saturating_sub(self.mapped_before);
        let text = line(job, self.most, mapped, self.began.elapsed());
        let (done, total) = (maps.committed + reduces.committed, maps.total + reduces.total);
        self.progress.draw(done.into(), total.into(), state_name(job.state()), text);
    }
}

fn tasks(progress: Option<TaskProgress>) -> TaskProgress {
    progress.unwrap_or_default()
}

/// What is shown of a job of which so many maps and reduces were ever committed, and of whose input
/// so many bytes were mapped in this time.
fn line(job: &Job, most: (u32, u32), mapped: u64, elapsed: Duration) -> String {
    let app = job.spec.as_ref().map_or("", |spec| spec.app.as_str());
    let (maps, reduces) = (tasks(job.maps), tasks(job.reduces));
    let percent = (100 * maps.bytes_committed).checked_div(maps.bytes_total).unwrap_or(0);
    let seconds = elapsed.as_secs_f64().max(0.001);
    let mut line = format!(
        "{} {app} {} | map {}/{} {percent}% {:.0} MB/s | reduce {}/{}",
        job.id,
        state_name(job.state()),
        maps.committed,
        maps.total,
        mapped as f64 / 1e6 / seconds,
        reduces.committed,
        reduces.total,
    );
    let left = maps.total - maps.committed.min(maps.total);
    if reduces.total > 0 && left > 0 {
        line.push_str(&format!(" waiting for {left} maps"));
    }
    for (kind, most, now) in
        [("maps", most.0, maps.committed), ("reduces", most.1, reduces.committed)]
    {
        if now < most {
            line.push_str(&format!(
                " | {} {kind} again, since their results were lost",
                most - now
            ));
        }
    }
    let skipped = job.counters.get("SKIPPED_RECORDS").unwrap_or(&0);
    let seconds = elapsed.as_secs();
    line.push_str(&format!(
        " | retries {} | skipped {skipped} | workers {} | {:02}:{:02}",
        maps.retries + reduces.retries,
        job.workers,
        seconds / 60,
        seconds % 60
    ));
    if !job.waiting_for.is_empty() {
        line.push_str(&format!(" | waiting: {}", job.waiting_for));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_tells_what_is_waited_for_and_why_work_is_done_again() {
        let progress = |committed, total| TaskProgress {
            total,
            committed,
            retries: 1,
            bytes_committed: 100 * u64::from(committed),
            bytes_total: 100 * u64::from(total),
            ..TaskProgress::default()
        };
        let mut job = Job {
            id: "01".to_owned(),
            state: JobState::Mapping.into(),
            maps: Some(progress(3, 4)),
            reduces: Some(progress(0, 2)),
            workers: 2,
            ..Job::default()
        };
        let found = line(&job, (3, 0), 30_000_000, Duration::from_secs(3));
        let expected = "01  mapping | map 3/4 75% 10 MB/s | reduce 0/2 waiting for 1 maps \
                        | retries 2 | skipped 0 | workers 2 | 00:03";
        assert_eq!(found, expected);
        job.maps = Some(progress(2, 4));
        let found = line(&job, (4, 0), 0, Duration::from_secs(60));
        assert!(found.contains("| 2 maps again, since their results were lost |"), "{found}");
        assert!(found.contains("waiting for 2 maps"), "{found}");
    }

    #[test]
    fn a_job_ends_with_the_exit_code_of_its_state() {
        let output = Output::new(crate::NAME, true);
        let ended = |state: JobState| {
            let job = Job { state: state.into(), ..Job::default() };
            conclude(&job, output).map_err(|failure| failure.code())
        };
        assert_eq!(ended(JobState::Succeeded), Ok(()));
        assert_eq!(ended(JobState::Failed), Err(Code::Failed));
        assert_eq!(ended(JobState::Cancelled), Err(Code::Cancelled));
    }
}
