//! Fail-stop: what ends the process at once.
//!
//! A store whose disk cannot be written, synced or read has nothing sound to say to anybody. It says why in the log and stops; the other
//! stores go on without it. Nothing is retried: after a failed sync the kernel may report success for data that is lost.

/// Ends the process.
pub fn stop(attempted: &str, error: &dyn std::fmt::Display) -> ! {
    tracing::error!("store stops: {attempted}: {error}");
    eprintln!("flotilla: store stops: {attempted}: {error}");
    std::process::exit(70);
}

/// Makes a panic on any thread end the process: a poisoned group must not go on.
pub fn stop_on_panic() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default(info);
        std::process::abort();
    }));
}
