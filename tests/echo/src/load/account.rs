//! What a run costs: processor time, context switches and memory of control groups, over the measured time alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::Context;

/// A control group and the name it is told under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    name: String,
    cgroup: PathBuf,
}

impl FromStr for Account {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, cgroup) = text.split_once('=').ok_or("expected NAME=CGROUP")?;
        Ok(Self { name: name.to_owned(), cgroup: cgroup.into() })
    }
}

/// By the accounts' names.
pub(super) type Costs = BTreeMap<String, Cost>;

/// What one of them used.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub(super) struct Cost {
    cpu_seconds: f64,
    /// How often a thread slept and was woken.
    wake_ups: u64,
    context_switches: u64,
    /// At the end; not a difference.
    resident_bytes: u64,
    /// What it is more than at the beginning; what an ended process had is not subtracted.
    resident_growth_bytes: u64,
}

/// The accounts with their state at the beginning.
pub(super) struct Meter {
    accounts: Vec<Account>,
    before: Before,
}

enum Before {
    /// It was read at the start: there is no warm-up.
    Read(Vec<Cost>),
    /// A thread reads it when the warm-up is over.
    Waiting(JoinHandle<anyhow::Result<Vec<Cost>>>),
}

impl Meter {
    /// Measures from `from` on; at once if that has passed, before this returns.
    pub(super) fn start(accounts: Vec<Account>, from: Instant) -> anyhow::Result<Self> {
        let all = accounts.clone();
        let look = move || all.iter().map(|account| read(&account.cgroup)).collect();
        let wait = from.saturating_duration_since(Instant::now());
        let before = if wait.is_zero() {
            Before::Read(look()?)
        } else {
            Before::Waiting(std::thread::spawn(move || {
                #[expect(clippy::disallowed_methods, reason = "the warm-up is a time, not an event")]
                std::thread::sleep(wait);
                look()
            }))
        };
        Ok(Self { accounts, before })
    }

    /// The difference to now.
    pub(super) fn finish(self) -> anyhow::Result<Costs> {
        let after: Vec<Cost> =
            self.accounts.iter().map(|account| read(&account.cgroup)).collect::<anyhow::Result<_>>()?;
        let before = match self.before {
            Before::Read(before) => before,
            Before::Waiting(thread) => {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?
            }
        };
        let costs = self.accounts.into_iter().zip(before.into_iter().zip(after));
        Ok(costs.map(|(account, (before, after))| (account.name, after.since(before))).collect())
    }
}

impl Cost {
    fn since(self, before: Self) -> Self {
        Self {
            cpu_seconds: self.cpu_seconds - before.cpu_seconds,
            // Threads that ended meanwhile took their counts with them.
            wake_ups: self.wake_ups.saturating_sub(before.wake_ups),
            context_switches: self.context_switches.saturating_sub(before.context_switches),
            resident_bytes: self.resident_bytes,
            resident_growth_bytes: self.resident_bytes.saturating_sub(before.resident_bytes),
        }
    }
}

fn read(cgroup: &Path) -> anyhow::Result<Cost> {
    let text = |file: &str| {
        let path = cgroup.join(file);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let used = number(&text("cpu.stat")?, "usage_usec");
    let mut cost = Cost { cpu_seconds: used as f64 / 1e6, ..Cost::default() };
    for pid in text("cgroup.procs")?.lines() {
        let process = Path::new("/proc").join(pid);
        // One that ends meanwhile has nothing to add.
        let status = fs::read_to_string(process.join("status")).unwrap_or_default();
        cost.resident_bytes += number(&status, "VmRSS:") * 1024;
        let threads = fs::read_dir(process.join("task")).into_iter().flatten().filter_map(Result::ok);
        for thread in threads {
            let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            let wake_ups = number(&status, "voluntary_ctxt_switches:");
            cost.wake_ups += wake_ups;
            cost.context_switches += wake_ups + number(&status, "nonvoluntary_ctxt_switches:");
        }
    }
    Ok(cost)
}

/// The number that follows `name` at a line's beginning; 0 without one.
fn number(text: &str, name: &str) -> u64 {
    let rest = text.lines().find_map(|line| line.strip_prefix(name));
    rest.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_the_beginning_of_their_lines() {
        let text = "VmRSS:\t    4711 kB\nvoluntary_ctxt_switches:\t5\nnonvoluntary_ctxt_switches:\t2\n";
        assert_eq!(number(text, "VmRSS:"), 4711);
        assert_eq!(number(text, "voluntary_ctxt_switches:"), 5);
        assert_eq!(number(text, "nonvoluntary_ctxt_switches:"), 2);
        assert_eq!(number(text, "usage_usec"), 0);
    }

    #[test]
    fn an_account_is_a_name_and_a_path_and_costs_are_differences_but_for_memory() {
        let account = "proxy=/sys/fs/cgroup/a=b".parse::<Account>().unwrap();
        assert_eq!(account, Account { name: "proxy".into(), cgroup: "/sys/fs/cgroup/a=b".into() });
        assert!("proxy".parse::<Account>().is_err());
        let at = |cpu_seconds, context_switches, resident_bytes| Cost {
            cpu_seconds,
            wake_ups: context_switches / 2,
            context_switches,
            resident_bytes,
            resident_growth_bytes: 0,
        };
        let expected = Cost { resident_growth_bytes: 200, ..at(3.0, 50, 300) };
        assert_eq!(at(5.0, 70, 300).since(at(2.0, 20, 100)), expected);
    }
}
