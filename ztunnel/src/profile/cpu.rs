//! Where the processors' time goes: SIGPROF after each so much of it that the process uses, as setitimer(2) has it, and the stack
//! that it interrupts.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::io;
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::ring::Ring;
use super::{Description, Kind, Stack, finish};

/// How often stacks are taken from the handler: 25 busy processors at 1,000 Hz fill its places in that time.
const TAKE: Duration = Duration::from_millis(10);
/// Different stacks that are told apart, 1 KiB each at most; those of a proxy under load are some hundreds.
const MOST_STACKS: usize = 20_000;

static STACKS: Ring<256> = Ring::new();
static UNDER_WAY: AtomicBool = AtomicBool::new(false);

/// Samples in a second of one processor's time: 1 to 1,000 Hz.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frequency(NonZero<u32>);

impl Frequency {
    /// None outside the range.
    pub(crate) fn new(hertz: u32) -> Option<Self> {
        NonZero::new(hertz).filter(|hertz| hertz.get() <= 1000).map(Self)
    }

    fn period(self) -> Duration {
        Duration::from_secs(1) / self.0.get()
    }
}

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CpuError {
    /// Somebody else takes one.
    #[error("a profile is being taken already; there is one signal for all of them")]
    Busy,
    /// The kernel refused.
    #[error("{call}: {error}")]
    Kernel { call: &'static str, error: io::Error },
    /// It could not be put together.
    #[error("putting the profile together failed")]
    Failed,
}

/// A profile of the next `length`, in pprof's format. It ends early, and nothing stays behind, if it is dropped.
pub(crate) async fn cpu(length: Duration, frequency: Frequency) -> Result<Vec<u8>, CpuError> {
    let sampling = Sampling::start(frequency)?;
    let mut counted = Counted::default();
    let mut tick = interval(TAKE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let end = Instant::now() + length;
    while Instant::now() < end {
        tick.tick().await;
        STACKS.take(|stack| counted.add(stack));
    }
    drop(sampling);
    STACKS.take(|stack| counted.add(stack));
    counted.lost += STACKS.lost();
    // Finding the names takes a second or more of a program with line numbers.
    tokio::task::spawn_blocking(move || counted.profile(length, frequency))
        .await
        .map_err(|_| CpuError::Failed)
}

/// As long as it lives, stacks are sampled.
struct Sampling;

impl Sampling {
    fn start(frequency: Frequency) -> Result<Self, CpuError> {
        if UNDER_WAY.swap(true, Ordering::Acquire) {
            return Err(CpuError::Busy);
        }
        let sampling = Self;
        // The first unwinding of all sets things up, which is not for a handler to do.
        walk(None, &mut |_| true);
        STACKS.take(drop);
        STACKS.lost();
        handle_signal().map_err(|error| CpuError::Kernel { call: "sigaction", error })?;
        set_timer(frequency.period()).map_err(|error| CpuError::Kernel { call: "setitimer", error })?;
        Ok(sampling)
    }
}

impl Drop for Sampling {
    fn drop(&mut self) {
        // Disarming fails for no valid timer. The handler stays: without it a signal that is still on its way would end the process.
        let _ = set_timer(Duration::ZERO);
        UNDER_WAY.store(false, Ordering::Release);
    }
}

fn handle_signal() -> io::Result<()> {
    let handler = SigHandler::SigAction(on_signal);
    let action = SigAction::new(handler, SaFlags::SA_RESTART | SaFlags::SA_SIGINFO, SigSet::empty());
    // SAFETY: the handler does only what may be done in one, see there; nothing else in this process uses the signal.
    unsafe { sigaction(Signal::SIGPROF, &action) }?;
    Ok(())
}

/// A signal after each `period` of the process's time; zero ends that. Not a POSIX timer: before Linux 6.4 those tell the main thread
/// in place of the one that runs.
fn set_timer(period: Duration) -> io::Result<()> {
    let period = libc::timeval {
        tv_sec: libc::time_t::try_from(period.as_secs()).map_err(io::Error::other)?,
        tv_usec: libc::suseconds_t::from(period.subsec_micros()),
    };
    let timer = libc::itimerval { it_interval: period, it_value: period };
    // SAFETY: the kernel reads a value that lives, and is not asked for the one before.
    match unsafe { libc::setitimer(libc::ITIMER_PROF, &raw const timer, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Notes the stack that the signal interrupts. What it does takes no lock and no memory: the ring is made for it, and the unwinder
/// finds tables by `_dl_find_object` (glibc 2.35); of an older one it takes the loader's lock, which the thread may hold already, as it
/// is recursive.
extern "C" fn on_signal(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    let interrupted = interrupted_at(context);
    STACKS.put(|push| walk(interrupted, push));
}

/// Pushes the addresses of the stack up from `from`, or all where that is not known. Callers are told by where they go on; the
/// instruction is the one before.
fn walk(from: Option<usize>, push: &mut dyn FnMut(usize) -> bool) {
    let mut inner = from;
    let each = |frame: &backtrace::Frame| {
        let address = frame.ip() as usize;
        match inner {
            Some(from) if from != address => true,
            Some(_) => {
                inner = None;
                push(address)
            }
            None => push(address.saturating_sub(1)),
        }
    };
    // SAFETY: what must be kept from happening at once is the making of names, which is not done here; to unwind, each thread
    // reads its own stack and tables that do not change.
    unsafe { backtrace::trace_unsynchronized(each) }
}

/// The instruction that the signal came before.
fn interrupted_at(context: *mut c_void) -> Option<usize> {
    // SAFETY: of a handler with SA_SIGINFO the kernel lets this point to a `ucontext_t` while it runs.
    let context = unsafe { context.cast::<libc::ucontext_t>().as_ref() }?;
    #[cfg(target_arch = "x86_64")]
    let address = usize::try_from(context.uc_mcontext.gregs[libc::REG_RIP as usize]).ok();
    #[cfg(target_arch = "aarch64")]
    let address = usize::try_from(context.uc_mcontext.pc).ok();
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let address = None;
    address
}

#[derive(Default)]
struct Counted {
    stacks: HashMap<Vec<usize>, u64>,
    lost: u64,
}

impl Counted {
    fn add(&mut self, stack: Vec<usize>) {
        let room = self.stacks.len() < MOST_STACKS;
        match self.stacks.get_mut(&stack) {
            Some(count) => *count += 1,
            None if room => drop(self.stacks.insert(stack, 1)),
            None => self.lost += 1,
        }
    }

    fn profile(self, length: Duration, frequency: Frequency) -> Vec<u8> {
        const CPU: Kind = Kind("cpu", "nanoseconds");
        let period = 1_000_000_000 / u64::from(frequency.0.get());
        let stacks: Vec<Stack> = self
            .stacks
            .into_iter()
            .map(|(addresses, count)| Stack { addresses, values: vec![count, count * period] })
            .collect();
        let description = Description {
            kinds: &[Kind("samples", "count"), CPU],
            period: (CPU, period),
            length,
            comment: match self.lost {
                0 => String::new(),
                lost => format!("{lost} samples found no place and are missing"),
            },
        };
        finish(&description, &stacks)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prost::Message as _;

    use super::super::pprof::Profile;
    use super::*;

    #[inline(never)]
    fn kept_busy(until: &AtomicBool) {
        let mut number = 0_u64;
        while !until.load(Ordering::Relaxed) {
            number = std::hint::black_box(number.wrapping_mul(31) + 1);
        }
    }

    // One test, since a process has one such signal.
    #[tokio::test]
    async fn a_profile_names_what_keeps_the_process_busy_and_is_taken_by_one_at_a_time() {
        let done = Arc::new(AtomicBool::new(false));
        let busy = std::thread::spawn({
            let done = done.clone();
            move || kept_busy(&done)
        });
        let frequency = Frequency::new(250).unwrap();
        let taking = cpu(Duration::from_secs(1), frequency);
        let (profile, second) = tokio::join!(taking, cpu(Duration::from_secs(1), frequency));
        assert!(matches!(second, Err(CpuError::Busy)), "{second:?}");
        let profile = Profile::decode(&*profile.unwrap()).unwrap();
        let named = profile.named();
        let of_busy = named.iter().filter(|(names, _)| names.iter().any(|name| name.ends_with("kept_busy")));
        let samples: i64 = of_busy.map(|(_, values)| values[0]).sum();
        assert!(samples > 10, "{samples} of {named:?}");
        let innermost =
            named.iter().filter(|(names, _)| names.first().is_some_and(|name| name.contains("on_signal")));
        assert_eq!(innermost.count(), 0, "the sampling is no part of it");
        let given_up = cpu(Duration::from_secs(3600), frequency);
        assert!(tokio::time::timeout(Duration::from_millis(10), given_up).await.is_err());
        assert!(cpu(Duration::from_millis(10), frequency).await.is_ok(), "nothing stayed behind");
        done.store(true, Ordering::Relaxed);
        busy.join().unwrap();
    }

    #[test]
    fn stacks_beyond_their_number_are_told_as_lost() {
        let mut counted = Counted::default();
        (0..MOST_STACKS + 5).for_each(|address| counted.add(vec![address]));
        counted.add(vec![0]);
        assert_eq!((counted.lost, counted.stacks[&vec![0]]), (5, 2));
    }
}
