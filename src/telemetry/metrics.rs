//! The figures of this process, as Prometheus reads them. A field of [`Metrics`] is a metric: its name
//! with `muster_` before it, its doc comment as the HELP. What changes them is in `events` (something
//! happened) and `figures` (something is read at each scrape); nobody else can.
//!
//! A `…Vec` shows nothing before it is first set: that is how a figure is left out where it is not known,
//! those of the hash slots at a front too.

use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus::core::Collector;
use prometheus::{
    Counter, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

pub use super::described::Described;
use super::process::Process;
use crate::signup::ContractId;

/// What the text that [`Metrics::render`] gives is called in HTTP.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Bounds of the histograms in seconds: from a look at a map to a deadline.
const SECONDS: [f64; 16] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];

/// Reads figures that somebody else keeps.
type Source = Box<dyn Fn(&Metrics) + Send + Sync>;

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $name:ident: $kind:ty $([$($label:literal),+])?;)+) => {
        /// Every metric there is.
        pub const DESCRIBED: &[Described] = &[$(Described {
            name: concat!("muster_", stringify!($name)),
            kind: <$kind as Kind>::NAME,
            labels: &[$($($label),+)?],
            help: concat!($($help),+).trim_ascii(),
        }),+];

        /// Everything this process counts and measures.
        pub struct Metrics {
            registry: Registry,
            sources: Mutex<Vec<Source>>,
            $($(#[doc = $help])+ pub(super) $name: $kind,)+
        }

        impl Default for Metrics {
            fn default() -> Self {
                let (registry, mut described) = (Registry::new(), DESCRIBED.iter());
                $(let $name: $kind = registered(&registry, described.next());)+
                if let Some(process) = Process::new() {
                    registry.register(Box::new(process)).expect("each name is there once");
                }
                let metrics = Self { registry, sources: Mutex::default(), $($name),+ };
                metrics.begin();
                metrics
            }
        }
    };
}

metrics! {
    /// Version of muster, as a label; always 1.
    build_info: IntGaugeVec ["version"];
    /// Registrations answered over HTTP, by contract and outcome.
    signups_total: IntCounterVec ["contract", "outcome"];
    /// Time from a registration's headers to its answer over HTTP, by the class of its status.
    signup_seconds: HistogramVec ["status"];
    /// Time a stage of a registration took: read, queue and reply at fronts; slot, hash, insert, work and
    /// settle at workers.
    stage_seconds: HistogramVec ["stage"];
    /// Registrations refused with 503 before they were queued, by reason: in_flight, backlog or queue.
    refused_total: IntCounterVec ["reason"];
    /// Bulk rows by final outcome, from any entry point: AMQP, POST /registrations or an import. Fronts count the
    /// rows that they refuse, workers all others; dead_letter counts those that became dead letters.
    bulk_rows_total: IntCounterVec ["outcome"];
    /// Open HTTP connections.
    connections: IntGauge;
    /// Requests over HTTP that wait for a worker's answer.
    requests_in_flight: IntGauge;
    /// Replies that came when nobody waited for them any more.
    replies_late_total: IntCounter;
    /// Replies that a worker could not deliver: the queue they were for is gone.
    replies_undelivered_total: IntCounter;
    /// Registrations a worker has handled, by door, contract and outcome.
    registrations_total: IntCounterVec ["door", "contract", "outcome"];
    /// Registrations that a unique index of another program refused, by the index.
    foreign_index_conflicts_total: IntCounterVec ["index"];
    /// Look-ups of a token's owner a worker has handled, by outcome.
    profiles_total: IntCounterVec ["outcome"];
    /// Messages a worker is handling, by door.
    deliveries_in_flight: IntGaugeVec ["door"];
    /// Times that the broker did not accept an event, by event; the event is published again every second and
    /// its message is held.
    events_refused_total: IntCounterVec ["event"];
    /// Messages a worker put back to be tried again.
    retries_total: IntCounter;
    /// Messages a worker put among the dead letters or, where there are none, gave up, by reason.
    dead_letters_total: IntCounterVec ["reason"];
    /// Interactive and profile messages that a worker dropped because the dead-letter queue had no room for
    /// them, by queue.
    dead_letters_dropped_total: IntCounterVec ["queue"];
    /// Part of the room for dead letters that is taken, by the x-max-length that their queue has on the broker;
    /// at 1 workers keep the bulk rows that should go there. Every front sees the same queue: take the greatest,
    /// not the sum.
    dead_letters_room_used_ratio: GaugeVec;
    /// Connections to the broker that were made again after one was lost, by what it is for.
    broker_reconnects_total: IntCounterVec ["connection"];
    /// Registrations that wait in the queue for a worker, by door. Every process sees the same queue: take
    /// the greatest, not the sum.
    backlog_messages: IntGaugeVec ["door"];
    /// Processor time it takes to hash the passwords of the registrations that wait, by door: what to scale
    /// workers by. Bulk rows that bring a hash count as if they had a password. Every process sees the same
    /// queue: take the greatest, not the sum.
    backlog_cpu_seconds: GaugeVec ["door"];
    /// Threads that hash passwords.
    hash_threads: IntGaugeVec;
    /// Threads that are hashing now.
    hash_threads_busy: IntGaugeVec;
    /// Passwords each thread can hash at once.
    hash_lanes: IntGaugeVec;
    /// Whether the bcrypt crate hashes because the lanes failed their test or are slower here: 1 or 0.
    hash_fallback: IntGaugeVec;
    /// Passwords that wait for a hash slot.
    hash_waiting: IntGaugeVec;
    /// Passwords that were hashed or verified.
    hash_jobs_total: IntCounter;
    /// Time that all hashing threads together were at work, in seconds.
    hash_busy_seconds_total: Counter;
    /// Time that all passwords together were in a lane, in seconds; to the busy time it is how many lanes
    /// were occupied.
    hash_lane_seconds_total: Counter;
    /// Passwords that all threads together can hash in a second at present.
    hash_capacity_per_second: GaugeVec;
    /// Whether a component can work, as in /ready: 1 or 0, by component.
    component_ready: IntGaugeVec ["component"];
    /// Time at which a TLS certificate expires, in seconds since 1970: front is that of front.tls_cert as it is in
    /// use, queue that of queue.cert_file.
    tls_certificate_expiry_timestamp_seconds: IntGaugeVec ["certificate"];
    /// Log lines that were lost, because standard error could not be written or was not read.
    log_lines_lost_total: IntCounter;
}

impl Metrics {
    /// What is known from the start, so that a rate has a zero to begin at.
    fn begin(&self) {
        self.build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        for contract in ContractId::ALL {
            self.signups_total.with_label_values(&[contract.as_str(), "registered"]);
        }
        self.bulk_rows_total.with_label_values(&["registered"]);
        for reason in ["in_flight", "backlog", "queue"] {
            self.refused_total.with_label_values(&[reason]);
        }
        for class in ["2xx", "4xx", "5xx"] {
            self.signup_seconds.with_label_values(&[class]);
        }
    }

    /// Reads figures that somebody else keeps, at each scrape from now on.
    pub fn at_scrape(&self, source: impl Fn(&Self) + Send + Sync + 'static) {
        self.sources().push(Box::new(source));
    }

    /// All figures in Prometheus' text format.
    pub fn render(&self) -> String {
        // Held to the end: of two scrapes at once each reads its own figures.
        let sources = self.sources();
        for read in sources.iter() {
            read(self);
        }
        self.log_lines_lost(super::stderr::lost());
        let families = self.registry.gather();
        TextEncoder::new().encode_to_string(&families).unwrap_or_default()
    }

    fn sources(&self) -> MutexGuard<'_, Vec<Source>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a metric can be.
trait Kind: Collector + Clone + 'static {
    const NAME: &'static str;
    fn make(opts: Opts, labels: &[&str]) -> prometheus::Result<Self>;
}

fn registered<K: Kind>(registry: &Registry, described: Option<&Described>) -> K {
    let made = described.ok_or(prometheus::Error::Msg("no such metric".into())).and_then(|it| {
        let made = K::make(Opts::new(it.name, it.help), it.labels)?;
        registry.register(Box::new(made.clone()))?;
        Ok(made)
    });
    made.expect("names and labels are valid, and each is there once: a test makes them all")
}

macro_rules! kinds {
    ($($kind:ty: $name:literal, |$opts:ident, $labels:ident| $make:expr;)+) => {
        $(impl Kind for $kind {
            const NAME: &'static str = $name;
            fn make($opts: Opts, $labels: &[&str]) -> prometheus::Result<Self> {
                $make
            }
        })+
    };
}

kinds! {
    Counter: "counter", |opts, _labels| Self::with_opts(opts);
    IntCounter: "counter", |opts, _labels| Self::with_opts(opts);
    IntCounterVec: "counter", |opts, labels| Self::new(opts, labels);
    GaugeVec: "gauge", |opts, labels| Self::new(opts, labels);
    IntGauge: "gauge", |opts, _labels| Self::with_opts(opts);
    IntGaugeVec: "gauge", |opts, labels| Self::new(opts, labels);
    HistogramVec: "histogram", |opts, labels| {
        Self::new(HistogramOpts::from(opts).buckets(SECONDS.to_vec()), labels)
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doc_comment_is_the_help() {
        let metrics = Metrics::default();
        metrics.at_scrape(|metrics| metrics.connections.set(7));
        metrics.stage_seconds.with_label_values(&["hash"]);
        let text = metrics.render();
        assert!(text.contains("# HELP muster_connections Open HTTP connections.\n"), "{text}");
        assert!(text.contains("# TYPE muster_connections gauge\nmuster_connections 7\n"), "{text}");
        assert!(
            text.contains("at fronts; slot, hash, insert, work and settle at workers.\n"),
            "{text}"
        );
    }
}
