//! How many threads carry connections.

use std::str::FromStr;

/// See the module.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Workers {
    /// Threads that carry connections: their number, or such as 50% of the processors; 0 for one a processor. At least one, 1024 at
    /// most. Default: the processors that --cpu-resource-limit allows, at least --cpu-resource-request; else one a processor.
    #[arg(long, env = "ZTUNNEL_WORKER_THREADS")]
    worker_threads: Option<WorkerThreads>,
    /// The container's limit of processors, as Kubernetes writes it (2, 1.5, 500m), if one is set. Counts as the number of
    /// processors, rounded up.
    #[arg(long, env = "ZTUNNEL_RESOURCE_CPU_LIMIT", value_parser = quantity)]
    cpu_resource_limit: Option<usize>,
    /// The container's request of processors, in the same form.
    #[arg(long, env = "ZTUNNEL_RESOURCE_CPU_REQUEST", value_parser = quantity)]
    cpu_resource_request: Option<usize>,
    /// The number of processors, where --cpu-resource-limit does not state it: the downward API's word, which is the node's if no
    /// limit is set. Default: what the kernel lets this process use.
    #[arg(long, env = "ZTUNNEL_CPU_LIMIT", value_parser = clap::value_parser!(u16).range(1..))]
    cpu_limit: Option<u16>,
}

impl Workers {
    /// `cores`: what the kernel says.
    pub(super) fn count(&self, cores: usize) -> usize {
        let allowed = self.cpu_resource_limit;
        let processors = allowed.or(self.cpu_limit.map(usize::from)).unwrap_or(cores);
        let wanted = match (self.worker_threads, allowed) {
            (Some(threads), _) => threads.of(processors),
            (None, Some(allowed)) => allowed.max(self.cpu_resource_request.unwrap_or(0)),
            (None, None) => processors,
        };
        wanted.clamp(1, usize::from(WorkerThreads::MOST))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WorkerThreads {
    /// So many; of 0, one a processor.
    Number(u16),
    /// Of the processors.
    Percent(u16),
}

impl WorkerThreads {
    const MOST: u16 = 1024;

    fn of(self, processors: usize) -> usize {
        match self {
            Self::Number(0) => processors,
            Self::Number(number) => usize::from(number),
            Self::Percent(percent) => (processors * usize::from(percent)).div_ceil(100),
        }
    }
}

impl FromStr for WorkerThreads {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |digits: &str, bounds: std::ops::RangeInclusive<u16>| {
            digits.parse().ok().filter(|number| bounds.contains(number))
        };
        let threads = match text.strip_suffix('%') {
            Some(digits) => number(digits, 1..=100).map(Self::Percent),
            None => number(text, 0..=Self::MOST).map(Self::Number),
        };
        threads.ok_or_else(|| format!("expected 0 to {}, or 1% to 100%", Self::MOST))
    }
}

/// Processors, rounded up.
fn quantity(text: &str) -> Result<usize, String> {
    let (digits, unit) = match text.strip_suffix('m') {
        Some(digits) => (digits, 1000.0),
        None => (text, 1.0),
    };
    let processors = digits.parse::<f64>().ok().map(|number| (number / unit).ceil());
    let processors = processors.filter(|number| (1.0..=65_535.0).contains(number));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a whole number between the bounds"
    )]
    processors.map(|number| number as usize).ok_or_else(|| "expected such as 2, 1.5 or 500m".to_owned())
}
