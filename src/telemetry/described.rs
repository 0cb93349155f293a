//! The description of a metric, with which tests compare the documentation and the dashboard.

/// A metric as it is documented.
#[derive(Clone, Copy, Debug)]
pub struct Described {
    /// Its name in full.
    pub name: &'static str,
    /// counter, gauge or histogram.
    pub kind: &'static str,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// Its HELP.
    pub help: &'static str,
}
