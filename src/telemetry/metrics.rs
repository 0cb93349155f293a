//! The Prometheus metrics of this process. Each field of [`Metrics`] is a metric: its name is the field's with the
//! prefix `muster_`, its HELP is the doc comment. Only `events` (when something happens) and `gauges` (at each
//! scrape) change them.
//!
//! A `…Vec` exports nothing until its first value. A metric without a value in this process is therefore absent,
//! not zero: those of the hash pool at a front, for example.

use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus::core::Collector;
use prometheus::{
    Counter, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

pub use super::description::MetricDescription;
use super::process::ProcessCollector;
use crate::domain::ContractId;

/// `Content-Type` of the text that [`Metrics::render`] returns.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of the histogram buckets, in seconds: from an in-memory lookup to the request timeout.
const BUCKETS: [f64; 16] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];

/// Sets metrics whose values another module keeps.
type ScrapeHook = Box<dyn Fn(&Metrics) + Send + Sync>;

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $name:ident: $kind:ty $([$($label:literal),+])?;)+) => {
        /// All metrics with the prefix `muster_`.
        pub const DESCRIPTIONS: &[MetricDescription] = &[$(MetricDescription {
            name: concat!("muster_", stringify!($name)),
            kind: <$kind as MetricKind>::NAME,
            labels: &[$($($label),+)?],
            help: concat!($($help),+).trim_ascii(),
        }),+];

        /// The counters, gauges and histograms of this process.
        pub struct Metrics {
            registry: Registry,
            hooks: Mutex<Vec<ScrapeHook>>,
            $($(#[doc = $help])+ pub(super) $name: $kind,)+
        }

        impl Default for Metrics {
            fn default() -> Self {
                let (registry, mut descriptions) = (Registry::new(), DESCRIPTIONS.iter());
                $(let $name: $kind = register(&registry, descriptions.next());)+
                if let Some(process) = ProcessCollector::new() {
                    registry.register(Box::new(process)).expect("metric names are unique");
                }
                let metrics = Self { registry, hooks: Mutex::default(), $($name),+ };
                metrics.init();
                metrics
            }
        }
    };
}

metrics! {
    /// Version of muster, as a label; always 1.
    build_info: IntGaugeVec ["version"];
    /// HTTP responses to signups, by contract and outcome.
    signups_total: IntCounterVec ["contract", "outcome"];
    /// Time from the headers of a signup request to its HTTP response, by status class.
    signup_duration_seconds: HistogramVec ["status"];
    /// Duration of each stage of a registration: read, queue and reply at fronts; slot, hash, insert, work and
    /// settle at workers.
    stage_duration_seconds: HistogramVec ["stage"];
    /// Signups refused with 503 before they were published, by reason: in_flight, backlog or queue.
    shed_total: IntCounterVec ["reason"];
    /// Bulk rows by final outcome, from every entry point: AMQP, POST /registrations and imports. Fronts count the
    /// rows that they refuse, workers all others; dead_letter counts dead-lettered rows.
    bulk_rows_total: IntCounterVec ["outcome"];
    /// Open HTTP connections.
    connections: IntGauge;
    /// HTTP requests that wait for a worker's reply.
    requests_in_flight: IntGauge;
    /// Replies that arrived after their request had ended.
    orphan_replies_total: IntCounter;
    /// Replies that a worker could not deliver, because the reply queue no longer exists.
    unroutable_replies_total: IntCounter;
    /// Registrations handled by a worker, by queue, contract and outcome.
    registrations_total: IntCounterVec ["queue", "contract", "outcome"];
    /// Registrations refused by a unique index that another program created, by index.
    foreign_index_conflicts_total: IntCounterVec ["index"];
    /// Profile lookups handled by a worker, by outcome.
    profiles_total: IntCounterVec ["outcome"];
    /// Messages that a worker is handling, by queue.
    deliveries_in_flight: IntGaugeVec ["queue"];
    /// Failed publishes of an event, by event. The worker holds the message and publishes the event again every
    /// second.
    events_refused_total: IntCounterVec ["event"];
    /// Messages that a worker scheduled for a retry.
    retries_total: IntCounter;
    /// Messages that a worker dead-lettered or, with the local queue, gave up, by reason.
    dead_letters_total: IntCounterVec ["reason"];
    /// Interactive and profile messages that a worker dropped because the dead-letter queue was full, by queue.
    dead_letters_dropped_total: IntCounterVec ["queue"];
    /// Messages in the dead-letter queue, divided by its x-max-length on the broker. At 1 workers hold bulk rows
    /// that they would dead-letter. Every front samples the same queue: use max, not sum.
    dead_letter_queue_fill_ratio: GaugeVec;
    /// Reconnects to the broker after a lost connection, by purpose of the connection.
    broker_reconnects_total: IntCounterVec ["connection"];
    /// Registrations in a queue that no worker has received yet, by queue. Every process samples the same queue:
    /// use max, not sum.
    queue_messages_ready: IntGaugeVec ["queue"];
    /// Processor time needed to hash the passwords of all registrations in a queue, by queue; scale workers by it.
    /// Bulk rows with a password hash count like rows with a password. Every process samples the same queue: use
    /// max, not sum.
    backlog_cpu_seconds: GaugeVec ["queue"];
    /// Threads that hash passwords.
    hash_threads: IntGaugeVec;
    /// Threads that are hashing now.
    hash_threads_busy: IntGaugeVec;
    /// Passwords that each thread hashes in parallel.
    hash_lanes: IntGaugeVec;
    /// 1 if the bcrypt crate hashes, because the parallel kernels failed their self-test or are slower on this
    /// machine; otherwise 0.
    hash_fallback: IntGaugeVec;
    /// Passwords in the hash queue.
    hash_queue_length: IntGaugeVec;
    /// Passwords hashed or verified.
    hash_jobs_total: IntCounter;
    /// Time that all hash threads together spent hashing, in seconds.
    hash_busy_seconds_total: Counter;
    /// Time that all passwords together spent in a lane, in seconds. Divided by the busy time it is the average
    /// number of occupied lanes.
    hash_lane_seconds_total: Counter;
    /// Current capacity of all hash threads together, in passwords per second.
    hash_capacity_per_second: GaugeVec;
    /// 1 if a component is ready, otherwise 0, by component, as in /ready.
    component_ready: IntGaugeVec ["component"];
    /// Expiry time of a TLS certificate in seconds since 1970, by certificate: front is the one in use from
    /// front.tls_cert, queue the one of queue.cert_file.
    tls_certificate_expiry_timestamp_seconds: IntGaugeVec ["certificate"];
    /// Log lines dropped because standard error could not be written or was not read.
    log_lines_lost_total: IntCounter;
}

impl Metrics {
    /// Exports these series as zero from the start, so that the first increment counts in a rate.
    fn init(&self) {
        self.build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        for contract in ContractId::ALL {
            self.signups_total.with_label_values(&[contract.as_str(), "registered"]);
        }
        self.bulk_rows_total.with_label_values(&["registered"]);
        for reason in ["in_flight", "backlog", "queue"] {
            self.shed_total.with_label_values(&[reason]);
        }
        for class in ["2xx", "4xx", "5xx"] {
            self.signup_duration_seconds.with_label_values(&[class]);
        }
    }

    /// Registers a hook that sets metrics at each scrape.
    pub fn at_scrape(&self, hook: impl Fn(&Self) + Send + Sync + 'static) {
        self.hooks().push(Box::new(hook));
    }

    /// Returns all metrics in the Prometheus text format.
    pub fn render(&self) -> String {
        // The lock is held until the end, so that concurrent scrapes do not mix their values.
        let hooks = self.hooks();
        for set in hooks.iter() {
            set(self);
        }
        self.set_log_lines_lost(super::stderr::lost());
        let families = self.registry.gather();
        TextEncoder::new().encode_to_string(&families).unwrap_or_default()
    }

    fn hooks(&self) -> MutexGuard<'_, Vec<ScrapeHook>> {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A metric type.
trait MetricKind: Collector + Clone + 'static {
    const NAME: &'static str;
    fn create(opts: Opts, labels: &[&str]) -> prometheus::Result<Self>;
}

fn register<K: MetricKind>(registry: &Registry, description: Option<&MetricDescription>) -> K {
    let missing = || prometheus::Error::Msg("metric without a description".into());
    let metric = description.ok_or_else(missing).and_then(|it| {
        let metric = K::create(Opts::new(it.name, it.help), it.labels)?;
        registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    });
    metric.expect("names and labels are valid and unique: a test registers all metrics")
}

macro_rules! kinds {
    ($($kind:ty: $name:literal, |$opts:ident, $labels:ident| $make:expr;)+) => {
        $(impl MetricKind for $kind {
            const NAME: &'static str = $name;
            fn create($opts: Opts, $labels: &[&str]) -> prometheus::Result<Self> {
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
        Self::new(HistogramOpts::from(opts).buckets(BUCKETS.to_vec()), labels)
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doc_comment_is_the_help_text() {
        let metrics = Metrics::default();
        metrics.at_scrape(|metrics| metrics.connections.set(7));
        metrics.stage_duration_seconds.with_label_values(&["hash"]);
        let text = metrics.render();
        assert!(text.contains("# HELP muster_connections Open HTTP connections.\n"), "{text}");
        assert!(text.contains("# TYPE muster_connections gauge\nmuster_connections 7\n"), "{text}");
        assert!(
            text.contains("at fronts; slot, hash, insert, work and settle at workers.\n"),
            "{text}"
        );
    }
}
