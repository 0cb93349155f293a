//! Processor time, memory and open files of this process, under the standard names of Prometheus client libraries.
//! Read from `/proc` at each scrape; absent on systems without it.

use std::fs;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge};
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

use super::description::MetricDescription;

/// All process metrics.
pub const DESCRIPTIONS: &[MetricDescription] = &[
    describe("process_cpu_seconds_total", "counter", "Processor time of the process, in seconds."),
    describe("process_resident_memory_bytes", "gauge", "Resident memory of the process, in bytes."),
    describe("process_virtual_memory_bytes", "gauge", "Virtual memory of the process, in bytes."),
    describe("process_open_fds", "gauge", "Open file descriptors of the process."),
    describe("process_max_fds", "gauge", "Limit of open file descriptors of the process."),
    describe(
        "process_start_time_seconds",
        "gauge",
        "Time at which the process started, in seconds since 1970.",
    ),
];

const fn describe(name: &'static str, kind: &'static str, help: &'static str) -> MetricDescription {
    MetricDescription { name, kind, labels: &[], help }
}

/// Collects the process metrics at each scrape.
pub(super) struct ProcessCollector {
    cpu: Counter,
    /// In the order of [`DESCRIPTIONS`], without the counter.
    gauges: Vec<Gauge>,
    /// Boot time of the system, in seconds since 1970.
    boot_time: u64,
}

/// Values read at one time.
#[derive(Debug, PartialEq)]
struct ProcessSample {
    cpu_seconds: f64,
    resident_bytes: f64,
    virtual_bytes: f64,
    open_fds: f64,
    max_fds: f64,
    start_time: f64,
}

impl ProcessCollector {
    /// Returns `None` on a system without `/proc`.
    pub(super) fn new() -> Option<Self> {
        let boot_time = boot_time(&fs::read_to_string("/proc/stat").ok()?)?;
        let (cpu, gauges) = DESCRIPTIONS.split_first()?;
        let gauges = gauges.iter().map(|gauge| Gauge::new(gauge.name, gauge.help));
        let process = Self {
            cpu: Counter::new(cpu.name, cpu.help).ok()?,
            gauges: gauges.collect::<Result<_, _>>().ok()?,
            boot_time,
        };
        process.sample().map(|_| process)
    }

    fn sample(&self) -> Option<ProcessSample> {
        let stat = ProcStat::parse(&fs::read_to_string("/proc/self/stat").ok()?)?;
        let ticks = clock_ticks_per_second() as f64;
        // The descriptor of this directory listing does not count.
        let open = fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1);
        Some(ProcessSample {
            cpu_seconds: stat.cpu_ticks as f64 / ticks,
            resident_bytes: stat.resident_pages as f64 * page_size() as f64,
            virtual_bytes: stat.virtual_bytes as f64,
            open_fds: open as f64,
            max_fds: getrlimit(Resource::Nofile).current.map_or(f64::INFINITY, |max| max as f64),
            start_time: self.boot_time as f64 + stat.start_ticks as f64 / ticks,
        })
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.gauges.iter().flat_map(Collector::desc).chain(self.cpu.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Some(sample) = self.sample() else { return Vec::new() };
        self.cpu.inc_by((sample.cpu_seconds - self.cpu.get()).max(0.0));
        let values = [
            sample.resident_bytes,
            sample.virtual_bytes,
            sample.open_fds,
            sample.max_fds,
            sample.start_time,
        ];
        for (gauge, value) in self.gauges.iter().zip(values) {
            gauge.set(value);
        }
        self.gauges.iter().flat_map(Collector::collect).chain(self.cpu.collect()).collect()
    }
}

/// The fields of `/proc/self/stat` that the metrics use.
#[derive(Debug, PartialEq)]
struct ProcStat {
    cpu_ticks: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl ProcStat {
    fn parse(text: &str) -> Option<Self> {
        // The process name may contain spaces and parentheses. The state follows it: field 3 in proc(5).
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)? + field(15)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

fn boot_time(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_of_a_program_with_parentheses_in_its_name() {
        let text = "7 (a) (b c) S 1 7 7 0 -1 4194560 9 0 0 0 120 30 0 0 20 0 3 0 5000 8192 2 \
            18446744073709551615 1 1\n";
        let stat =
            ProcStat { cpu_ticks: 150, start_ticks: 5000, virtual_bytes: 8192, resident_pages: 2 };
        assert_eq!(ProcStat::parse(text), Some(stat));
        assert_eq!(ProcStat::parse("7 (a) S 1"), None);
        assert_eq!(boot_time("cpu 1 2\nbtime 1700000000\n"), Some(1_700_000_000));
    }
}
