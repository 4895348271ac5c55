//! What `perf script` prints, read and folded: samples by the part of the path they were taken in.

use std::collections::BTreeMap;

use super::parts::{Frame, Part, part};

/// The fields `perf script` is asked for; [`samples`] reads just these.
pub(super) const FIELDS: &str = "pid,ip,sym,dso";

/// Kernel addresses begin so on every 64-bit processor Linux runs on.
const KERNEL: &str = "ffff";

/// A sample: whose it is, and the functions that were being executed, the innermost first.
#[derive(Debug, PartialEq)]
pub(super) struct Sample<'a> {
    pub(super) pid: u32,
    pub(super) frames: Vec<Frame<'a>>,
}

/// How many samples there are of each part in each process.
pub(super) type Counts = BTreeMap<u32, BTreeMap<Part, u64>>;

/// Adds the samples of a text to the counts.
pub(super) fn fold(text: &str, counts: &mut Counts) {
    for sample in samples(text) {
        *counts.entry(sample.pid).or_default().entry(part(&sample.frames)).or_default() += 1;
    }
}

/// The samples of a text: each is a line with the process, a line for each function, and an empty line.
fn samples(text: &str) -> impl Iterator<Item = Sample<'_>> {
    text.split("\n\n").filter_map(|block| {
        let mut lines = block.lines().filter(|line| !line.trim().is_empty());
        let pid = lines.next()?.trim().parse().ok()?;
        Some(Sample { pid, frames: lines.filter_map(frame).collect() })
    })
}

/// `ffffffff81 tcp_sendmsg ([kernel.kallsyms])`; names may have spaces and parentheses in them.
fn frame(line: &str) -> Option<Frame<'_>> {
    let (address, rest) = line.trim().split_once(' ')?;
    // Of a file that another one has replaced since.
    let rest = rest.strip_suffix(" (deleted))").or(rest.strip_suffix(')')).unwrap_or(rest);
    let (symbol, object) = rest.rsplit_once(" (").unwrap_or((rest, ""));
    let kernel = address.len() == 16 && address.starts_with(KERNEL);
    Some(Frame { kernel, symbol: symbol.trim(), object })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
  12 
\tffffffffa6cc1b2a tcp_sendmsg_locked ([kernel.kallsyms])
\tffffffffa6cc2000 tcp_sendmsg ([kernel.kallsyms])
\t          10e0a7 __send (/usr/lib/x86_64-linux-gnu/libc.so.6)

 345 
\t          4d0000 <h2::proto::Streams<B> as core::ops::Fn(T)>::call (/tmp/a (deleted))

  12 
\t               0 [unknown] ([unknown])

";

    #[test]
    fn samples_are_read_with_their_processes_and_functions() {
        let found: Vec<Sample<'_>> = samples(TEXT).collect();
        assert_eq!(found.iter().map(|sample| sample.pid).collect::<Vec<_>>(), [12, 345, 12]);
        let kernel = |symbol| Frame { kernel: true, symbol, object: "[kernel.kallsyms]" };
        assert_eq!(
            found[0].frames,
            [
                kernel("tcp_sendmsg_locked"),
                kernel("tcp_sendmsg"),
                Frame { kernel: false, symbol: "__send", object: "/usr/lib/x86_64-linux-gnu/libc.so.6" }
            ]
        );
        let symbol = "<h2::proto::Streams<B> as core::ops::Fn(T)>::call";
        assert_eq!(found[1].frames, [Frame { kernel: false, symbol, object: "/tmp/a" }]);
        assert_eq!(found[2].frames[0].object, "[unknown]");
    }

    #[test]
    fn samples_are_counted_by_process_and_part_over_several_texts() {
        let mut counts = Counts::new();
        fold(TEXT, &mut counts);
        fold(TEXT, &mut counts);
        let of = |pid: u32| counts[&pid].iter().map(|(part, count)| (*part, *count)).collect::<Vec<_>>();
        assert_eq!(of(12), [(Part::Send, 2), (Part::OtherUser, 2)]);
        assert_eq!(of(345), [(Part::Http2, 2)]);
    }
}
