//! What the kernel knows of the process, by Prometheus' standard names, and what tokio knows of its runtimes (contract 1.10).

use std::fmt;
use std::fs;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeValLike as _;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;

/// Looks all of it up when asked.
#[derive(Debug)]
pub struct Process {
    /// Each with the name that its `runtime` label says.
    runtimes: Vec<(String, Handle)>,
}

impl Process {
    /// Of this process, with these runtimes.
    pub fn new(runtimes: impl IntoIterator<Item = (String, Handle)>) -> Self {
        Self { runtimes: runtimes.into_iter().collect() }
    }

    /// Makes it known to `registry`, under no prefix.
    pub fn register(self, registry: &mut Registry) {
        registry.register_collector(Box::new(self));
    }

    fn encode_runtimes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let count = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        type Reading = fn(&tokio::runtime::RuntimeMetrics) -> usize;
        let gauges: [(&str, &str, Reading); 3] = [
            ("tokio_num_workers", "Threads of a runtime", |metrics| metrics.num_workers()),
            ("tokio_num_alive_tasks", "Tasks that have not ended", |metrics| metrics.num_alive_tasks()),
            (
                "tokio_global_queue_depth",
                "Tasks that were woken from outside their runtime and wait for their turn",
                |metrics| metrics.global_queue_depth(),
            ),
        ];
        for (name, help, read) in gauges {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (runtime, handle) in &self.runtimes {
                let labels = [("runtime", runtime.as_str())];
                ConstGauge::new(count(read(&handle.metrics()))).encode(family.encode_family(&labels)?)?;
            }
        }
        let mut busy = encoder.encode_descriptor(
            "tokio_busy_seconds",
            "Time that a runtime's threads spent with its tasks",
            None,
            MetricType::Counter,
        )?;
        for (runtime, handle) in &self.runtimes {
            let metrics = handle.metrics();
            let workers = 0..metrics.num_workers();
            let seconds: f64 =
                workers.map(|worker| metrics.worker_total_busy_duration(worker).as_secs_f64()).sum();
            ConstCounter::new(seconds).encode(busy.encode_family(&[("runtime", runtime.as_str())])?)?;
        }
        Ok(())
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, value) in [
            ("process_open_fds", "File descriptors that are open", open_descriptors()),
            ("process_max_fds", "File descriptors that may be open", most_descriptors()),
            ("process_resident_memory_bytes", "Memory that is resident", resident_bytes()),
        ] {
            // What the kernel does not say is left out, rather than told as 0.
            let Some(value) = value else { continue };
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        if let Some(seconds) = processor_seconds() {
            let help = "Processor time, of the process and of the kernel for it";
            let family = encoder.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?;
            ConstCounter::new(seconds).encode(family)?;
        }
        self.encode_runtimes(&mut encoder)
    }
}

fn open_descriptors() -> Option<u64> {
    // The directory itself is one of them.
    let entries = fs::read_dir("/proc/self/fd").ok()?.count();
    u64::try_from(entries).ok()?.checked_sub(1)
}

fn most_descriptors() -> Option<u64> {
    getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft)
}

/// `proc_pid_status(5)`: `VmRSS`, in KiB.
fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of centuries")]
fn processor_seconds() -> Option<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let microseconds = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Some(microseconds as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernels_and_tokios_numbers_are_told_by_their_names() {
        let metrics = crate::metrics::Metrics::new();
        let process = Process::new([("main".to_owned(), Handle::current())]);
        metrics.register(|registry| process.register(registry));
        let text = metrics.encode().unwrap();
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("{name} is not in {text}")).parse().unwrap()
        };
        let (open, most) = (value("process_open_fds"), value("process_max_fds"));
        assert!(open >= 3.0 && open <= most, "{open} of {most}");
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_cpu_seconds_total") >= 0.0);
        assert!(value("tokio_num_workers{runtime=\"main\"}") >= 1.0);
        assert!(value("tokio_num_alive_tasks{runtime=\"main\"}") >= 0.0);
        assert!(value("tokio_busy_seconds_total{runtime=\"main\"}") >= 0.0);
    }
}
