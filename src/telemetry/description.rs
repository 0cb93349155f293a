//! The description of a metric: tests compare the documentation and the dashboard with it.

/// Name, type, labels and help text of a metric.
#[derive(Clone, Copy, Debug)]
pub struct MetricDescription {
    /// Full name, with the prefix `muster_` or `process_`.
    pub name: &'static str,
    /// Metric type: `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Label names.
    pub labels: &'static [&'static str],
    /// Text of the HELP line.
    pub help: &'static str,
}
