//! What is seen of a job while it runs, on standard error: each finished step with its time, and,
//! on a terminal only, a moving line for the one at work.

use crate::output::{Event, Spinner, amount, tell, took};
use banger_proto::model::JobView;
use std::time::Duration;

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    /// The moving line, on a terminal.
    Live,
    /// Every step with its time as well, terminal or not.
    Steps,
    /// Nothing but warnings.
    Quiet,
    /// Every step and warning as JSON on standard output.
    Json,
}

/// The view of one job.
#[derive(Debug)]
pub(crate) struct Progress {
    line: Spinner,
    detail: Detail,
    steps_shown: usize,
    warnings_shown: usize,
}

/// The step by which the daemon says what it resolved; its detail is the specification.
const SPEC_STEP: &str = "spec";

impl Progress {
    pub(crate) fn new(detail: Detail) -> Self {
        Self {
            line: Spinner::new(!matches!(detail, Detail::Quiet | Detail::Json)),
            detail,
            steps_shown: 0,
            warnings_shown: 0,
        }
    }

    /// Shows what is new in a job.
    pub(crate) async fn update(&mut self, job: &JobView) {
        for warning in job.warnings.iter().skip(self.warnings_shown) {
            self.remark(&format!("warning: {warning}"));
        }
        self.warnings_shown = job.warnings.len();
        for stage in job.stages.iter().skip(self.steps_shown) {
            let Some(ms) = stage.took_ms else {
                let more = if stage.detail.is_empty() { String::new() } else { format!(" ({})", stage.detail) };
                self.line.show(&format!("{}: {}{more}", job.title, stage.name));
                break;
            };
            self.steps_shown += 1;
            let told = Event::Stage { job: job.id.0, name: &stage.name, took_ms: ms, detail: &stage.detail };
            self.tell(&told).await;
            if stage.name == SPEC_STEP && self.detail == Detail::Steps {
                self.say(&stage.detail);
            } else if self.detail == Detail::Steps {
                let line = format!("  {:<22} {:>10}  {}", stage.name, took(Duration::from_millis(ms)), stage.detail);
                self.say(line.trim_end());
            }
        }
    }

    async fn tell(&self, event: &Event<'_>) {
        if self.detail == Detail::Json {
            // Who no longer reads is found out when the VM is ready; until then the job goes on.
            drop(tell(event).await);
        }
    }

    /// Shows how much of an upload went out.
    pub(crate) fn sent(&self, bytes: u64, total: Option<u64>) {
        let of = total.map(|total| format!(" of {}", amount(total))).unwrap_or_default();
        self.line.show(&format!("send {}{of}", amount(bytes)));
    }

    /// What the moving line says while no job is at work.
    pub(crate) fn say_moving(&self, text: &str) {
        self.line.show(text);
    }

    /// Shows a sentence at once.
    pub(crate) fn say(&self, text: &str) {
        self.line.note(text);
    }

    /// The same, for a program as well.
    pub(crate) fn remark(&self, text: &str) {
        self.line.remark(text);
    }
}
