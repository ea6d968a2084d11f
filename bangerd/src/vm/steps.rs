//! The steps of a start, by name; and the place where the test bench makes one of them fail.

use crate::paths::Paths;
use banger_proto::model::ApiError;
#[cfg(feature = "failpoints")]
use banger_proto::model::ErrorCode;

/// In the order of a start (spec section 4). A later failure undoes them in reverse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Preflight,
    Overlay,
    WorkDisk,
    Tap,
    Nat,
    Launch,
    Api,
    Bind,
    Handles,
    GuestReady,
}

impl Step {
    #[cfg(test)]
    pub(crate) const ALL: [Step; 10] = [
        Step::Preflight,
        Step::Overlay,
        Step::WorkDisk,
        Step::Tap,
        Step::Nat,
        Step::Launch,
        Step::Api,
        Step::Bind,
        Step::Handles,
        Step::GuestReady,
    ];

    /// As users see it, and as `BANGER_FAIL_STEP` names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Step::Preflight => "preflight",
            Step::Overlay => "overlay",
            Step::WorkDisk => "work disk",
            Step::Tap => "tap",
            Step::Nat => "nat",
            Step::Launch => "launch",
            Step::Api => "boot",
            Step::Bind => "bind",
            Step::Handles => "handles",
            Step::GuestReady => "guest ready",
        }
    }
}

/// Fails when the bench wants this step to fail: named by the variable `BANGER_FAIL_STEP` or, so that a running
/// daemon can be told, by the file `fail_step` in the state folder. Asked when the step has done its work, so
/// that its own undo is tried too. Without the feature `failpoints` there is nothing of this in the binary.
#[cfg(feature = "failpoints")]
pub(crate) fn fail_point(step: Step, paths: &Paths) -> Result<(), ApiError> {
    let file = std::fs::read_to_string(paths.state.join("fail_step")).ok();
    let wanted = file.or_else(|| std::env::var("BANGER_FAIL_STEP").ok());
    if wanted.is_some_and(|wanted| wanted.trim() == step.name()) {
        return Err(ApiError::new(ErrorCode::OperationFailed, format!("{}: failed on request", step.name())));
    }
    Ok(())
}

#[cfg(not(feature = "failpoints"))]
#[expect(clippy::unnecessary_wraps, reason = "the same signature as with the feature")]
pub(crate) fn fail_point(_step: Step, _paths: &Paths) -> Result<(), ApiError> {
    Ok(())
}
