//! Ctrl-C, SIGTERM and SIGHUP: a sandbox is taken down before the process ends.
//!
//! Whoever waits with [`wait`] is woken by the first signal and takes its sandbox down in its own order. Any other
//! signal ends all runs of the process from the watching thread, and the process with 128 + the signal's number.

use std::sync::{Condvar, Mutex, Once, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::error::{During, Result};
use crate::run;

/// What the waiting thread and the watching thread share.
#[derive(Debug, Default)]
struct Waiting {
    waiting: bool,
    signalled: bool,
}

static STATE: Mutex<Waiting> = Mutex::new(Waiting { waiting: false, signalled: false });
static CHANGED: Condvar = Condvar::new();

/// Starts to watch for signals; once per process, later calls do nothing.
pub(crate) fn watch() -> Result<()> {
    static STARTED: Once = Once::new();
    let mut result = Ok(());
    STARTED.call_once(|| result = start());
    result
}

/// Waits for a signal that asks the process to end, and looks after things meanwhile: at most `pause` passes between two looks.
///
/// # Errors
/// Signals cannot be watched for, or a look failed.
pub fn wait<E: From<crate::Error>>(
    pause: Duration,
    mut look: impl FnMut() -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    watch()?;
    let waiting = || STATE.lock().unwrap_or_else(PoisonError::into_inner);
    waiting().waiting = true;
    let outcome = loop {
        let wait = CHANGED.wait_timeout_while(waiting(), pause, |state| !state.signalled);
        if wait.unwrap_or_else(PoisonError::into_inner).0.signalled {
            break Ok(());
        }
        if let Err(error) = look() {
            break Err(error);
        }
    };
    waiting().waiting = false;
    outcome
}

fn start() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .during(|| "starting a runtime for signals".into())?;
    let mut signals = Vec::new();
    {
        let _context = runtime.enter();
        for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
            signals.push((
                kind,
                signal(kind).during(|| format!("watching for signal {}", kind.as_raw_value()))?,
            ));
        }
    }
    std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                let waits = signals.iter_mut().map(|(kind, signal)| {
                    let kind = *kind;
                    Box::pin(async move {
                        signal.recv().await;
                        kind
                    })
                });
                let (kind, ..) = futures::future::select_all(waits).await;
                handle(kind);
            }
        });
    });
    Ok(())
}

fn handle(kind: SignalKind) {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    if state.waiting && !state.signalled {
        state.signalled = true;
        CHANGED.notify_all();
        return;
    }
    drop(state);
    eprintln!("\ninterrupted: taking the sandbox down");
    run::end_all();
    std::process::exit(128 + kind.as_raw_value());
}
