//! `muster doctor`: checks settings, machine, broker and database, and changes nothing. `local` checks the settings
//! and the machine, `queue` the broker, `store` the database.

mod format;
mod local;
mod management;

use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use url::Url;

use super::{
    EXIT_CONFIGURATION, EXIT_FAILED, EXIT_FINDINGS, EXIT_OK, SettingFlags, print_error, runtime,
    stdout,
};
use crate::config::Settings;
use crate::telemetry::finding::{Finding, Severity};
use crate::{queue, store};
use format::TextStyle;

/// Timeout for all checks of the broker, and for all of the database. Single checks have shorter timeouts, so that one
/// that hangs does not hide the others.
const SERVICE_TIMEOUT: Duration = Duration::from_secs(20);
/// Remedy if the settings do not allow a check.
const SETTING_REMEDY: &str = "fix the named setting";

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    muster doctor\n  \
    muster doctor --role front\n  \
    muster doctor --management http://broker:15672\n  \
    muster doctor --json | jq '.findings[] | select(.severity == \"error\")'\n\n\
    Exit codes: 0 no warnings or errors, 1 failed, 2 command line or settings are invalid, 3 warnings or errors.\n\
    Existing queues are compared by declaring them again, which changes nothing.")]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    settings: SettingFlags,
    /// Also check cluster, bindings, policies and alarms through RabbitMQ's HTTP API, because AMQP does not show
    /// them. Uses the credentials of the queue unless the URL has its own; the user needs the tag monitoring.
    #[arg(long, value_name = "URL", value_parser = super::http_url)]
    management: Option<Url>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(flags: DoctorArgs) -> u8 {
    if let Some(url) = &flags.management {
        let instead = "give the user of the queue the tag monitoring, and omit the password here";
        super::warn_of_credentials("--management", url.as_str(), instead);
    }
    let start = flags.settings.clone().load();
    let settings = match flags.settings.load_for_client() {
        Ok(settings) => settings,
        Err(error) => {
            print_error(&error);
            return EXIT_CONFIGURATION;
        }
    };
    let mut findings: Vec<Finding> =
        start.as_ref().err().map(local::startup_problem).into_iter().collect();
    let found =
        runtime().map(|runtime| runtime.block_on(check(&settings, flags.management.as_ref())));
    let printed = found.and_then(|found| {
        findings.extend(found);
        stdout::print(&render(&findings, flags.json))?;
        Ok(findings.iter().map(|finding| finding.severity).max())
    });
    match printed {
        Ok(Some(Severity::Warning | Severity::Error)) => EXIT_FINDINGS,
        Ok(_) => EXIT_OK,
        Err(error) => {
            print_error(&error);
            EXIT_FAILED
        }
    }
}

async fn check(settings: &Settings, management: Option<&Url>) -> Vec<Finding> {
    let mut findings = local::check(settings).await;
    let found = timeout(SERVICE_TIMEOUT, queue::inspect(&settings.queue)).await;
    findings.extend(findings_or_error("broker", SETTING_REMEDY, found));
    let found = management::check(&settings.queue, management).await;
    findings.extend(findings_or_error("management", queue::MANAGEMENT_REMEDY, Ok(found)));
    if settings.role.has_worker() {
        let found = timeout(SERVICE_TIMEOUT, store::inspect(&settings.store)).await;
        findings.extend(findings_or_error("database", SETTING_REMEDY, found));
    }
    findings
}

fn findings_or_error(
    check: &'static str,
    remedy: &str,
    found: Result<anyhow::Result<Vec<Finding>>, Elapsed>,
) -> Vec<Finding> {
    match found {
        Ok(Ok(findings)) => findings,
        Ok(Err(error)) => vec![Finding::error(check, format!("{error:#}"), remedy)],
        Err(_) => {
            let remedy = "check that the service runs and that the network allows the connection";
            vec![Finding::error(check, "no response within 20 s", remedy)]
        }
    }
}

fn render(findings: &[Finding], as_json: bool) -> String {
    if as_json {
        let count = |severity| findings.iter().filter(|found| found.severity == severity).count();
        let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
        let document = json!({ "errors": errors, "warnings": warnings, "findings": findings });
        return format!("{document}\n");
    }
    format::text(findings, TextStyle::for_stdout())
}

/// Formats a count with a singular or plural noun.
fn counted(count: impl Into<i64>, noun: &str) -> String {
    let count = count.into();
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
