//! The report of `muster bench`, as text and as JSON.

use std::time::Duration;

use serde::Serialize;

use super::BenchArgs;
use crate::cli::stdout;
use crate::config::{QueueUrl, Settings, StoreUrl};
use crate::password::Usage;

/// Factor between the ceilings before and after the signups above which the result is marked as unsteady.
const UNSTEADY: f64 = 1.15;

#[derive(Debug, Serialize)]
pub(super) struct BenchReport {
    queue: &'static str,
    store: &'static str,
    pub(super) hashing: HashingReport,
    pub(super) signups: SignupReport,
    /// Signups divided by the rate of the `bcrypt` crate on the same threads.
    ratio_to_crate: f64,
    /// Signups divided by the ceiling, the hashing rate with all lanes full.
    ratio_to_ceiling: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    isolation: Option<BulkIsolation>,
}

/// Signups at half the capacity, without and with rows in the bulk queue.
#[derive(Debug, Serialize)]
pub(super) struct BulkIsolation {
    /// Rows in the queue or delivered when the measurement began.
    pub(super) rows: usize,
    pub(super) per_second: f64,
    pub(super) p99_alone_ms: f64,
    pub(super) p99_with_rows_ms: f64,
    pub(super) ratio: f64,
    pub(super) rows_per_second: f64,
    /// Signups and rows together, divided by signups alone at full load.
    pub(super) sum_to_capacity: f64,
    /// Responses other than 201.
    pub(super) other: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct HashingReport {
    pub(super) cost: u32,
    pub(super) threads: usize,
    pub(super) kernel: String,
    pub(super) crate_per_second: f64,
    pub(super) ceiling_per_second: f64,
    /// Ceiling before the signups and after them; the reported ceiling is between.
    pub(super) ceiling_before: f64,
    pub(super) ceiling_after: f64,
    pub(super) crate_ms: f64,
    pub(super) single_ms: f64,
    pub(super) batch_ms: f64,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct SignupReport {
    pub(super) connections: usize,
    pub(super) seconds: f64,
    pub(super) created: u64,
    /// Responses other than 201.
    pub(super) other: u64,
    pub(super) per_second: f64,
    pub(super) p50_ms: f64,
    pub(super) p95_ms: f64,
    pub(super) p99_ms: f64,
    /// Internal values, only of an instance in this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) internals: Option<Internals>,
}

#[derive(Debug, Serialize)]
pub(super) struct Internals {
    /// Average number of passwords in a batch.
    lanes_occupied: f64,
    /// Average time in the hash queue.
    wait_ms: f64,
    /// Processor time without hashing and load generation.
    cpu_us_per_signup: f64,
}

impl SignupReport {
    pub(super) fn count(&mut self, mut times: Vec<Duration>) {
        times.sort_unstable();
        let at = |share: f64| {
            let index = ((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1));
            times.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
        };
        self.created = times.len() as u64;
        self.per_second = self.created as f64 / self.seconds;
        (self.p50_ms, self.p95_ms, self.p99_ms) = (at(0.50), at(0.95), at(0.99));
    }

    pub(super) fn set_internals(&mut self, before: Usage, after: Usage, cpu: Duration) {
        let jobs = (after.jobs - before.jobs).max(1) as f64;
        let part = |time: fn(&Usage) -> Duration| (time(&after) - time(&before)).as_secs_f64();
        self.internals = Some(Internals {
            lanes_occupied: part(|usage| usage.lane_time) / part(|usage| usage.busy_time).max(1e-6),
            wait_ms: part(|usage| usage.queue_time) * 1e3 / jobs,
            cpu_us_per_signup: cpu.as_secs_f64() * 1e6 / jobs,
        });
    }
}

impl BenchReport {
    pub(super) fn new(
        flags: &BenchArgs,
        settings: &Settings,
        hashing: HashingReport,
        signups: SignupReport,
        isolation: Option<BulkIsolation>,
    ) -> Self {
        let queue = match (&flags.address, &settings.queue.url) {
            (Some(_), _) => "of the instance at the given address",
            (None, QueueUrl::Local) => "in this process",
            (None, QueueUrl::Amqp(_)) => "RabbitMQ",
        };
        let store = match (&flags.address, &settings.store.url) {
            (Some(_), _) => "of the instance at the given address",
            (None, StoreUrl::File(_)) => "embedded file",
            (None, StoreUrl::Mongo(_)) => "MongoDB",
        };
        Self {
            queue,
            store,
            ratio_to_crate: signups.per_second / hashing.crate_per_second,
            ratio_to_ceiling: signups.per_second / hashing.ceiling_per_second,
            hashing,
            signups,
            isolation,
        }
    }

    /// Responses other than 201.
    pub(super) fn other(&self) -> u64 {
        self.signups.other + self.isolation.as_ref().map_or(0, |isolation| isolation.other)
    }

    /// Prints the report.
    pub(super) fn print(&self, json: bool) -> anyhow::Result<()> {
        let text = if json {
            serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
        } else {
            self.text()
        };
        stdout::print(&text)
    }

    fn text(&self) -> String {
        let HashingReport { cost, threads, kernel, crate_per_second, ceiling_per_second, .. } =
            &self.hashing;
        let signups = &self.signups;
        let mut text = format!(
            "hashing at cost {cost} on {threads} threads\n\
             \x20 bcrypt crate      {crate_per_second:>9.1}/s   one takes {:.1} ms\n\
             \x20 {kernel:<17} {ceiling_per_second:>9.1}/s   {:.2} x the crate; one alone takes {:.1} ms, a full batch {:.1} ms\n\
             signups (queue: {}, store: {}, {} connections, {:.0} s)\n\
             \x20 created           {:>9.1}/s   {} users, {} other responses\n\
             \x20 p50 / p95 / p99   {:.1} / {:.1} / {:.1} ms\n\
             \x20 of the crate      {:>9.2} x\n\
             \x20 of the ceiling    {:>9.2} x\n",
            self.hashing.crate_ms,
            ceiling_per_second / crate_per_second,
            self.hashing.single_ms,
            self.hashing.batch_ms,
            self.queue,
            self.store,
            signups.connections,
            signups.seconds,
            signups.per_second,
            signups.created,
            signups.other,
            signups.p50_ms,
            signups.p95_ms,
            signups.p99_ms,
            self.ratio_to_crate,
            self.ratio_to_ceiling,
        );
        let HashingReport { ceiling_before, ceiling_after, .. } = self.hashing;
        if (ceiling_before / ceiling_after).ln().abs() > UNSTEADY.ln() {
            text += &format!(
                "  not steady              {ceiling_before:.1}/s before, {ceiling_after:.1}/s after: \
                 other load on these cores makes the ratios unreliable; run the bench again\n"
            );
        }
        if let Some(internals) = &signups.internals {
            text += &format!(
                "  lanes occupied    {:>9.1}     {:.1} ms in the hash queue\n\
                 \x20 other CPU         {:>9.0} us per signup, without hashing and load generation\n",
                internals.lanes_occupied, internals.wait_ms, internals.cpu_us_per_signup
            );
        }
        if let Some(isolation) = &self.isolation {
            text += &format!(
                "at half of that, {:.1}/s, with {} rows in the bulk queue\n\
                 \x20 p99               {:>9.1} ms   {:.2} x the {:.1} ms without rows\n\
                 \x20 rows              {:>9.1}/s   signups and rows together are {:.2} x the signups alone\n",
                isolation.per_second,
                isolation.rows,
                isolation.p99_with_rows_ms,
                isolation.ratio,
                isolation.p99_alone_ms,
                isolation.rows_per_second,
                isolation.sum_to_capacity,
            );
        }
        text + &format!(
            "This machine registers {:.0} users per minute at cost {cost}.\n",
            signups.per_second * 60.0
        )
    }
}
