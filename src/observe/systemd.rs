//! Tells the service manager how things stand (`Type=notify`). Without `NOTIFY_SOCKET`, does nothing.

use sd_notify::NotifyState;
use tracing::debug;

use super::mask::mask;

/// The instance is watching.
pub fn ready() {
    notify(NotifyState::Ready);
}

/// The instance is ending.
pub fn stopping() {
    notify(NotifyState::Stopping);
}

/// One line for `systemctl status`.
pub fn status(text: &str) {
    notify(NotifyState::Status(&mask(text).replace('\n', " ")));
}

/// A service manager that does not listen is no reason to stop.
fn notify(state: NotifyState) {
    if let Err(error) = sd_notify::notify(&[state]) {
        debug!(event = "notify_failed", cause = %error);
    }
}
