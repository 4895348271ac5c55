//! Logging: lines go through a bounded queue to one writer thread, so that a slow terminal or disk never holds up a
//! connection. When the queue is full, lines are lost, but never silently: they are counted, and the next line that
//! gets through is preceded by one that says how many were.
//!
//! Two forms, chosen by `LOG_FORMAT`: `text` (tab-separated, as Istio's) and `json` (one flat object a line).

use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, reload};

/// Lines that may wait for the writer: at 200 bytes each 2 MB, a second's worth of a busy node.
const QUEUE_LINES: usize = 10_000;

/// How long the end of the process waits for the last lines to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the writer waits between two batches. A line that finds the writer at rest wakes it, which costs the connection that
/// writes the line more than the line does: so it is done 200 times a second at most.
const GATHER: Duration = Duration::from_millis(5);

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// Tab-separated: time, level, scope, message, `key=value` pairs.
    #[default]
    Text,
    /// One flat JSON object.
    Json,
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("`{other}` is neither text nor json")),
        }
    }
}

/// Logging could not be set up, or the filter not changed.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter is not of `RUST_LOG`'s form.
    #[error("the log filter `{filter}` is not understood: {reason}; an example: info,ztunnel=debug")]
    Filter {
        /// The filter.
        filter: String,
        /// Why.
        reason: String,
    },
    /// Something else in the process has set logging up.
    #[error("logging is set up already")]
    Twice,
    /// No thread for the writer.
    #[error("starting the log writer: {0}")]
    Writer(#[from] io::Error),
}

type Reload = Arc<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;

/// Changes the filter of a running process and counts lost lines. Cheap to clone.
#[derive(Clone)]
pub struct LogHandle {
    reload: Reload,
    filter: Arc<Mutex<String>>,
    lost: Arc<AtomicU64>,
}

/// Writes out what is buffered when dropped, for one second at the longest: keep it until the end of `main`.
#[must_use = "dropped at once, later lines are lost at exit"]
pub struct LogGuard {
    queue: Option<Arc<Queue>>,
    /// Disconnected when the writer has ended.
    ended: Receiver<()>,
}

/// Sets logging up for the process, to standard output. `filter` is of `RUST_LOG`'s form, such as `info,access=off`.
pub fn init(filter: &str, format: Format) -> Result<(LogHandle, LogGuard), LoggingError> {
    let parsed = parse(filter)?;
    let (sender, receiver) = sync_channel(QUEUE_LINES);
    let lost = Arc::new(AtomicU64::new(0));
    let for_writer = lost.clone();
    let (ends, ended) = sync_channel(0);
    thread::Builder::new().name("log".into()).spawn(move || {
        write_lines(&receiver, &for_writer, io::stdout());
        drop(ends);
    })?;
    let queue = Arc::new(Queue { sender, lost: lost.clone() });
    let (filter_layer, handle) = reload::Layer::new(parsed);
    let lines = tracing_subscriber::fmt::layer()
        .event_format(Line { format })
        .with_writer(QueueWriter(Arc::downgrade(&queue)));
    tracing_subscriber::registry()
        .with(filter_layer)
        .with(lines)
        .try_init()
        .map_err(|_| LoggingError::Twice)?;
    let reload: Reload = Arc::new(move |filter| handle.reload(filter));
    let handle = LogHandle { reload, filter: Arc::new(Mutex::new(filter.to_owned())), lost };
    Ok((handle, LogGuard { queue: Some(queue), ended }))
}

impl LogHandle {
    /// The filter in force.
    pub fn filter(&self) -> String {
        self.current().clone()
    }

    /// Sets another filter.
    pub fn set_filter(&self, filter: &str) -> Result<(), LoggingError> {
        let parsed = parse(filter)?;
        let mut current = self.current();
        (self.reload)(parsed)
            .map_err(|error| LoggingError::Filter { filter: filter.to_owned(), reason: error.to_string() })?;
        filter.clone_into(&mut current);
        Ok(())
    }

    /// Lines that were lost because the output did not take them fast enough.
    pub fn dropped_lines(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    // A text is replaced in one step: a panic elsewhere leaves it whole.
    fn current(&self) -> MutexGuard<'_, String> {
        self.filter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        // The writer ends when the queue's only lasting reference is gone and all lines are written.
        self.queue = None;
        // Not longer: an output that nobody reads must not keep the process alive.
        let _ = self.ended.recv_timeout(FLUSH_TIMEOUT);
    }
}

fn parse(filter: &str) -> Result<EnvFilter, LoggingError> {
    EnvFilter::try_new(filter)
        .map_err(|error| LoggingError::Filter { filter: filter.to_owned(), reason: error.to_string() })
}

/// The sending side: never blocks.
struct Queue {
    sender: SyncSender<Vec<u8>>,
    lost: Arc<AtomicU64>,
}

/// Collects one event's line and queues it. After the end of `main` there is no queue, and lines go nowhere.
struct QueueWriter(std::sync::Weak<Queue>);

impl<'a> MakeWriter<'a> for QueueWriter {
    type Writer = QueuedLine;

    fn make_writer(&'a self) -> QueuedLine {
        QueuedLine { queue: self.0.upgrade(), line: Vec::with_capacity(256) }
    }
}

struct QueuedLine {
    queue: Option<Arc<Queue>>,
    line: Vec<u8>,
}

impl Write for QueuedLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for QueuedLine {
    fn drop(&mut self) {
        let Some(queue) = &self.queue else { return };
        match queue.sender.try_send(std::mem::take(&mut self.line)) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(_)) => {
                queue.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Writes lines in batches, a flush when the queue is empty, then a pause in which the next batch gathers; and says how many were lost meanwhile.
#[expect(clippy::disallowed_methods, reason = "nothing but time lets lines gather")]
fn write_lines(lines: &Receiver<Vec<u8>>, lost: &AtomicU64, output: impl Write) {
    let mut output = io::BufWriter::with_capacity(64 * 1024, output);
    let mut reported = 0;
    while let Ok(first) = lines.recv() {
        tell_lost(lost, &mut reported, &mut output);
        let _ = output.write_all(&first);
        for line in lines.try_iter() {
            let _ = output.write_all(&line);
        }
        let _ = output.flush();
        thread::sleep(GATHER);
    }
    // Lost while the last lines were written.
    tell_lost(lost, &mut reported, &mut output);
    let _ = output.flush();
}

/// Says how many lines were lost that were not `reported` yet.
fn tell_lost(lost: &AtomicU64, reported: &mut u64, output: &mut impl Write) {
    let lost = lost.load(Ordering::Relaxed);
    if lost > *reported {
        let more = lost - *reported;
        // A log that cannot be written has nowhere to complain; the counter still tells.
        let _ = writeln!(output, "{more} log lines were lost: the log could not be written fast enough");
        *reported = lost;
    }
}

/// Renders one event.
struct Line {
    format: Format,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut time = String::with_capacity(32);
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        match self.format {
            Format::Text => {
                let level = metadata.level().as_str().to_lowercase();
                let message = OneLine(&fields.message);
                write!(writer, "{time}\t{level}\t{}\t{message}", metadata.target())?;
                for (index, (key, value)) in fields.rest.iter().enumerate() {
                    let separator = if index == 0 { '\t' } else { ' ' };
                    write!(writer, "{separator}{key}={value}")?;
                }
            }
            Format::Json => {
                let mut object = serde_json::Map::new();
                object.insert("level".into(), metadata.level().as_str().to_lowercase().into());
                object.insert("time".into(), time.into());
                object.insert("scope".into(), metadata.target().into());
                object.insert("message".into(), fields.message.into());
                object.extend(fields.rest.into_iter().map(|(key, value)| (key.to_owned(), value)));
                write!(writer, "{}", serde_json::Value::Object(object))?;
            }
        }
        writeln!(writer)
    }
}

/// A text whose control characters are escaped: what others had a say in must not forge lines or columns.
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c.is_control() {
            true => write!(f, "{}", c.escape_default()),
            false => f.write_char(c),
        })
    }
}

/// An event's fields, the message apart.
#[derive(Default)]
struct Fields {
    message: String,
    rest: Vec<(&'static str, serde_json::Value)>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: impl Into<serde_json::Value>) {
        self.rest.push((field.name(), value.into()));
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            self.add(field, format!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message = value.to_owned();
        } else {
            self.add(field, value);
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn rendered(format: Format) -> String {
        let captured = Captured::default();
        let target = captured.clone();
        let subscriber = tracing_subscriber::registry().with(
            tracing_subscriber::fmt::layer()
                .event_format(Line { format })
                .with_writer(move || target.clone()),
        );
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "access", { src.addr = "10.0.0.1:1", bytes_sent = 7_u64, error = None::<&str> }, "connection complete");
        });
        let bytes = captured.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_json_line_is_one_flat_object_with_dotted_keys_and_no_absent_fields() {
        let value: serde_json::Value = serde_json::from_str(&rendered(Format::Json)).unwrap();
        assert_eq!(value["scope"], "access");
        assert_eq!(value["message"], "connection complete");
        assert_eq!(value["src.addr"], "10.0.0.1:1");
        assert_eq!(value["bytes_sent"], 7);
        assert!(value.get("error").is_none());
    }

    #[test]
    fn a_text_line_has_time_level_scope_message_and_pairs() {
        let line = rendered(Format::Text);
        let columns: Vec<&str> = line.trim_end().split('\t').collect();
        assert_eq!(columns[1..4], ["info", "access", "connection complete"]);
        assert_eq!(columns[4], "src.addr=\"10.0.0.1:1\" bytes_sent=7");
    }

    #[test]
    fn a_message_cannot_forge_a_line_or_a_column() {
        assert_eq!(OneLine("a\nb\tc\u{1b}[31m").to_string(), "a\\nb\\tc\\u{1b}[31m");
    }

    #[test]
    fn an_output_that_takes_nothing_does_not_hold_up_the_end() {
        let (queue, lines) = sync_channel::<Vec<u8>>(1);
        let (held_open, ended) = sync_channel(0);
        let guard = LogGuard { queue: Some(Arc::new(Queue { sender: queue, lost: Arc::default() })), ended };
        let begun = std::time::Instant::now();
        drop(guard);
        assert!(begun.elapsed() >= FLUSH_TIMEOUT && begun.elapsed() < FLUSH_TIMEOUT * 10);
        // The queue is closed for the writer, whenever it comes to it.
        assert!(lines.recv().is_err());
        drop::<SyncSender<()>>(held_open);
    }

    #[test]
    fn lines_lost_are_counted_and_told_before_the_next_that_gets_through() {
        let (sender, receiver) = sync_channel(1);
        let lost = Arc::new(AtomicU64::new(0));
        let queue = Arc::new(Queue { sender, lost: lost.clone() });
        for line in ["first\n", "second\n", "third\n"] {
            let mut queued = QueuedLine { queue: Some(queue.clone()), line: Vec::new() };
            queued.write_all(line.as_bytes()).unwrap();
        }
        drop(queue);
        let captured = Captured::default();
        write_lines(&receiver, &lost, captured.clone());
        let bytes = captured.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.starts_with("2 log lines were lost") && text.ends_with("first\n"), "{text}");
    }

    #[test]
    fn a_pipe_that_nobody_reads_holds_up_nobody_and_what_is_lost_is_counted_and_told() {
        let (mut reader, writer) = io::pipe().unwrap();
        let (sender, receiver) = sync_channel(QUEUE_LINES);
        let lost = Arc::new(AtomicU64::new(0));
        let for_writer = lost.clone();
        let writing = thread::spawn(move || write_lines(&receiver, &for_writer, writer));
        let queue = Arc::new(Queue { sender, lost: lost.clone() });
        // The pipe, the buffer and the queue take a third of that; a connection that waited would wait for ever.
        let all = 4 * QUEUE_LINES;
        for number in 0..all {
            let mut queued = QueuedLine { queue: Some(queue.clone()), line: Vec::new() };
            writeln!(queued, "line {number:0>200}").unwrap();
        }
        drop(queue);
        let counted = usize::try_from(lost.load(Ordering::Relaxed)).unwrap();
        assert!(counted > QUEUE_LINES, "{counted} of {all}");
        let mut text = String::new();
        io::Read::read_to_string(&mut reader, &mut text).unwrap();
        writing.join().unwrap();
        let (written, said): (Vec<&str>, Vec<&str>) =
            text.lines().partition(|line| line.starts_with("line "));
        let told = said.iter().map(|line| line.split_once(' ').unwrap().0.parse::<usize>().unwrap());
        assert_eq!((written.len() + counted, told.sum::<usize>()), (all, counted));
    }

    #[test]
    fn a_filter_or_format_that_is_not_understood_says_what_is() {
        assert!(parse("info,=[").unwrap_err().to_string().contains("an example"));
        assert!("xml".parse::<Format>().unwrap_err().contains("json"));
    }
}
