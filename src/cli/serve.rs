//! `muster serve`: runs front and worker until a signal. The first stops gracefully, the second immediately.

mod summary;

use std::sync::mpsc::SyncSender;

use anyhow::Context;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{EXIT_CONFIGURATION, EXIT_FAILED, EXIT_OK, SettingFlags, print_error, start_runtime};
use crate::app::{Addresses, App, ExitReason};
use crate::config::{Role, Settings};
use crate::domain::Clock;
use crate::front::ReloadableFiles;
use crate::http_client::collector::Collector;
use crate::telemetry::export::SpanExport;
use crate::telemetry::{stderr, terminal};

pub(super) fn run(flags: SettingFlags) -> u8 {
    let (runtime, settings) = match start_runtime(flags.load(), None) {
        Ok(started) => started,
        Err(code) => return code,
    };
    let export = match start_export(&settings, runtime.handle()) {
        Ok(export) => export,
        Err(error) => {
            print_error(&error);
            return EXIT_CONFIGURATION;
        }
    };
    let code = runtime.block_on(serve(&settings));
    // Before the runtime ends, because it sends the last spans. An immediate stop does not send them.
    if let Some(export) = export.filter(|_| code != EXIT_FAILED) {
        export.shutdown();
    }
    // Does not wait for tasks that still run after an immediate stop.
    runtime.shutdown_background();
    code
}

/// Starts the export of spans if `trace.endpoint` is set.
fn start_export(settings: &Settings, runtime: &Handle) -> anyhow::Result<Option<SpanExport>> {
    let Some(trace) = &settings.trace else { return Ok(None) };
    let collector = Collector::new(trace, runtime.clone())?;
    SpanExport::start(trace, settings.role, collector).map(Some)
}

async fn serve(settings: &Settings) -> u8 {
    let (app, mut signals) = match start(settings).await {
        Ok(started) => started,
        Err(error) => {
            print_error(&error);
            return EXIT_CONFIGURATION;
        }
    };
    let reload = match FileReloader::start(app.files()) {
        Ok(reload) => reload,
        Err(error) => {
            print_error(&error);
            return EXIT_CONFIGURATION;
        }
    };
    let stop = CancellationToken::new();
    let running = app.run_until(stop.clone().cancelled_owned());
    let mut running = std::pin::pin!(running);
    loop {
        tokio::select! {
            end = &mut running => return exit_code(end),
            request = signals.next() => match request {
                SignalRequest::Reload => reload.request(),
                SignalRequest::Stop if stop.is_cancelled() => {
                    print_error(&anyhow::anyhow!("stopped immediately; requests in progress were aborted"));
                    return EXIT_FAILED;
                }
                SignalRequest::Stop => {
                    tracing::info!(
                        event = "stopping",
                        "stopping; a second signal stops immediately"
                    );
                    stop.cancel();
                }
            },
        }
    }
}

/// Returns the exit code, and prints the reason of an early end.
fn exit_code(end: ExitReason) -> u8 {
    match end {
        ExitReason::Stopped => EXIT_OK,
        ExitReason::StoreIncompatible(error) => {
            print_error(&anyhow::anyhow!(error));
            EXIT_CONFIGURATION
        }
    }
}

async fn start(settings: &Settings) -> anyhow::Result<(App, Signals)> {
    // Before the start, so that an early signal does not kill the process.
    let mut signals = Signals::new()?;
    if settings.role.has_front() && ReloadableFiles::are_configured(&settings.front) {
        signals.handle_reload()?;
    }
    let is_new = summary::is_new(settings);
    terminal::starting();
    let app = App::start(settings, Clock::system()).await;
    let addresses = app.as_ref().map(App::addresses).unwrap_or_default();
    log_addresses(settings, addresses);
    terminal::started(settings.role == Role::All);
    let app = app?;
    if terminal::is_active() {
        stderr::text(&stderr::printable(&summary::text(settings, addresses, is_new)));
    }
    Ok((app, signals))
}

/// Logs the addresses of the process.
fn log_addresses(settings: &Settings, addresses: Addresses) {
    if let Some(front) = addresses.front {
        let scheme = if settings.front.tls.is_some() { "https" } else { "http" };
        tracing::info!(event = "front_listening", "serving on {scheme}://{front}");
    }
    if let Some(admin) = addresses.admin {
        tracing::info!(event = "admin_listening", "probes on http://{admin}");
    }
}

/// Reloads files on a separate thread, because a file system that hangs must not delay a stop.
struct FileReloader(SyncSender<()>);

impl FileReloader {
    fn start(files: ReloadableFiles) -> anyhow::Result<Self> {
        let (request, requests) = std::sync::mpsc::sync_channel(1);
        std::thread::Builder::new()
            .name("reload".into())
            .spawn(move || requests.iter().for_each(|()| files.reload()))
            .context("cannot start the thread that reloads files")?;
        Ok(Self(request))
    }

    /// Requests a reload. Merged with a request that has not started yet.
    fn request(&self) {
        let _ = self.0.try_send(());
    }
}

/// Signal handlers. SIGTERM and SIGINT stop the process. SIGHUP reloads files if the settings name any; otherwise it
/// keeps its default action, so that the process ends with its terminal.
pub(super) struct Signals {
    reload: Option<Signal>,
    terminate: Signal,
    interrupt: Signal,
}

/// Effect of a signal.
pub(super) enum SignalRequest {
    Stop,
    Reload,
}

impl Signals {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            reload: None,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    fn handle_reload(&mut self) -> std::io::Result<()> {
        self.reload = Some(signal(SignalKind::hangup())?);
        Ok(())
    }

    /// Waits for the next signal.
    pub(super) async fn next(&mut self) -> SignalRequest {
        let reload = async {
            match &mut self.reload {
                Some(reload) => reload.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => SignalRequest::Stop,
            _ = self.interrupt.recv() => SignalRequest::Stop,
            _ = reload => SignalRequest::Reload,
        }
    }
}
