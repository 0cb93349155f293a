//! Kills processes at every step of a registration. The request, or its repetition with the same key, gets the
//! one user.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use muster::domain::UserId;
use muster::store;
use muster::telemetry::Health;

use crate::support::ledger::{FrontClients, Ledger};
use crate::support::muster::SECRET;
use crate::support::secrets::lines_with_secrets;
use crate::support::{Fleet, Setup};

/// Keeps a worker waiting for a stalled store while the test continues.
const LONG_STORE_TIMEOUT: [(&str, &str); 1] = [("MUSTER_STORE_TIMEOUT", "4s")];

#[tokio::test]
async fn message_of_a_worker_killed_before_hashing_is_redelivered() {
    let Some(mut fleet) = Fleet::new(1, 2, &LONG_STORE_TIMEOUT).await else { return };
    fleet.workers[0].start().await;
    let (client, ledger) = (fleet.fronts[0].client(), fleet.ledger.clone());
    let registration = ledger.registration();
    // The worker waits at the look-up before the hash.
    fleet.workers[0].store.stall();
    let killed = async {
        fleet.workers[0].wait_for_event("delivery_started").await;
        fleet.workers[0].kill().await;
        fleet.workers[1].start().await;
    };
    let (response, ()) = tokio::join!(ledger.register(&client, &registration), killed);
    let response = response.unwrap();
    assert_eq!((response.status, response.header("idempotency-replayed")), (201, None));
    fleet.repeat_and_compare().await.assert_consistent();
}

#[tokio::test]
async fn worker_killed_after_the_insert_causes_a_replay() {
    let Some(mut fleet) = Fleet::new(1, 2, &LONG_STORE_TIMEOUT).await else { return };
    fleet.workers[0].start().await;
    let (client, ledger) = (fleet.fronts[0].client(), fleet.ledger.clone());
    let registration = ledger.registration_without_key();
    fleet.workers[0].store.stall();
    let killed = async {
        fleet.workers[0].wait_for_event("hash_started").await;
        // Neither the reply nor the ack reaches the broker.
        fleet.workers[0].broker.stall();
        fleet.workers[0].store.restore();
        fleet.workers[0].wait_for_event("registration_handled").await;
        fleet.workers[0].kill().await;
        fleet.workers[0].broker.cut();
        fleet.workers[1].start().await;
    };
    let (response, ()) = tokio::join!(ledger.register(&client, &registration), killed);
    let response = response.unwrap();
    assert_eq!((response.status, response.header("idempotency-replayed")), (201, Some("true")));
    fleet.repeat_and_compare().await.assert_consistent();
}

#[tokio::test]
async fn worker_killed_between_reply_and_ack_has_replied() {
    let Some(mut fleet) = Fleet::new(1, 2, &LONG_STORE_TIMEOUT).await else { return };
    fleet.workers[0].start().await;
    let (client, ledger) = (fleet.fronts[0].client(), fleet.ledger.clone());
    let registration = ledger.registration();
    fleet.workers[0].store.stall();
    let replied = async {
        fleet.workers[0].wait_for_event("delivery_started").await;
        // The reply reaches the broker, but the worker gets no confirm and does not ack.
        fleet.workers[0].broker.drop_responses();
        fleet.workers[0].store.restore();
    };
    let (response, ()) = tokio::join!(ledger.register(&client, &registration), replied);
    let response = response.unwrap();
    assert_eq!((response.status, response.header("idempotency-replayed")), (201, None));
    fleet.workers[0].kill().await;
    fleet.workers[0].broker.cut();

    // The redelivered message is a replay.
    fleet.workers[1].start().await;
    fleet.workers[1].wait_for_event_with("registration_handled", "replayed").await;
    fleet.repeat_and_compare().await.assert_consistent();
}

#[tokio::test]
async fn request_to_a_killed_front_succeeds_at_another() {
    let Some(mut fleet) = Fleet::new(2, 1, &LONG_STORE_TIMEOUT).await else { return };
    fleet.workers[0].start().await;
    let (clients, ledger) = ([0, 1].map(|n| fleet.fronts[n].client()), fleet.ledger.clone());
    let registration = ledger.registration();
    fleet.workers[0].store.stall();
    let killed = async {
        fleet.workers[0].wait_for_event("delivery_started").await;
        fleet.fronts[0].kill().await;
        fleet.update_addresses();
        let again = ledger.register(&clients[1], &registration);
        fleet.workers[0].store.restore();
        again.await
    };
    let (broken, again) = tokio::join!(ledger.register(&clients[0], &registration), killed);
    assert!(broken.is_none());
    assert_eq!(again.unwrap().status, 201);
    fleet.repeat_and_compare().await.assert_consistent();
}

#[tokio::test]
async fn embedded_store_keeps_registrations_after_a_kill() {
    let setup = Setup::embedded();
    let mut muster = setup.start().await;
    let fronts: FrontClients = Arc::new(Mutex::new(vec![muster.client().clone()]));
    let ledger = Ledger::default();
    let load = ledger.start_load(&fronts, 8);
    let mut output = String::new();
    for _ in 0..3 {
        ledger.wait_for_created(50).await;
        muster.signal("KILL");
        assert!(!muster.wait_for_exit().await.success());
        output += &muster.output();
        muster = setup.start().await;
        *fronts.lock().unwrap() = vec![muster.client().clone()];
    }
    load.finish().await;
    ledger.repeat_all(&fronts).await;
    output += &muster.stop_and_collect_output().await;

    // Reads the file without the program.
    let part = Health::default().component("store");
    let store = store::open(&setup.settings().store, &part).await.unwrap();
    let mut users: HashMap<String, Vec<String>> = HashMap::new();
    for id in ledger.ids() {
        if let Some(user) = store.find_user(UserId::parse(&id).unwrap()).await.unwrap() {
            users.entry(user.username.unwrap()).or_default().push(id);
        }
    }
    let mut summary = ledger.compare(&users);
    summary.unexpected.extend(lines_with_secrets(&output));
    summary.assert_consistent();
}

/// Not a test: [`panic_ends_the_process_without_quoting_data`] runs it in a subprocess.
#[tokio::test]
#[ignore = "panics on purpose, in a subprocess of another test"]
async fn panic_in_a_subprocess() {
    muster::shutdown::end_on_panic(muster::telemetry::stderr::line, || std::process::exit(70));
    let connection = muster::shutdown::contained(async { panic!("{SECRET}: a connection") });
    assert!(tokio::spawn(connection).await.is_err());
    let connection = muster::shutdown::contained(async { panic!("a constant message") });
    assert!(tokio::spawn(connection).await.is_err());
    println!("still running");
    let thread = std::thread::spawn(|| panic!("{SECRET}: a thread"));
    let _ = thread.join();
    println!("not reached");
}

#[test]
fn panic_ends_the_process_without_quoting_data() {
    let this = std::env::current_exe().unwrap();
    let mut subprocess = std::process::Command::new(this);
    subprocess.args(["--exact", "crash::panic_in_a_subprocess", "--ignored", "--nocapture"]);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = subprocess.stderr(full).output().unwrap();
    assert_eq!(output.status.code(), Some(70), "standard error full: {output:?}");
    let output = subprocess.stderr(std::process::Stdio::piped()).output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("still running") && !stdout.contains("not reached"), "{stdout}");
    assert_eq!(output.status.code(), Some(70), "{stdout}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    for end in ["its connection is closed", "the process ends"] {
        let line = stderr.lines().find(|line| line.contains(end));
        assert!(line.is_some_and(|line| line.contains("crash.rs:")), "{stderr}");
    }
    assert!(stderr.contains("(a constant message): its connection is closed"), "{stderr}");
    assert!(!stderr.contains(SECRET), "{stderr}");
}
