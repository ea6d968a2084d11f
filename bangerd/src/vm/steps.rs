//! The steps of a start, by name.

/// In the order of a start (docs/architecture.md, "A VM's life"). A later failure undoes them in
/// reverse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Preflight,
    RootDisk,
    WorkDisk,
    Tap,
    Network,
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
        Step::RootDisk,
        Step::WorkDisk,
        Step::Tap,
        Step::Network,
        Step::Launch,
        Step::Api,
        Step::Bind,
        Step::Handles,
        Step::GuestReady,
    ];

    /// As users see it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Step::Preflight => "preflight",
            Step::RootDisk => "root disk",
            Step::WorkDisk => "work disk",
            Step::Tap => "tap",
            Step::Network => "network",
            Step::Launch => "launch",
            Step::Api => "boot",
            Step::Bind => "bind",
            Step::Handles => "handles",
            Step::GuestReady => "guest ready",
        }
    }
}
