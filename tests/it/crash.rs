//! Processes that get SIGKILL at every step of a registration. Whoever asks, or asks again with the
//! same key, gets the one user there is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use muster::signup::UserId;
use muster::store;
use muster::telemetry::Health;

use crate::support::ledger::{Fronts, Ledger};
use crate::support::muster::SECRET;
use crate::support::secrets::secrets_in;
use crate::support::{Rig, Setup};

/// Long enough to hold a worker at a call to the store while the test does something else.
const HELD: [(&str, &str); 1] = [("MUSTER_STORE_TIMEOUT", "4s")];

#[tokio::test]
async fn a_worker_killed_before_hashing_leaves_the_message_to_another() {
    let Some(mut rig) = Rig::new(1, 2, &HELD).await else { return };
    rig.workers[0].start().await;
    let (client, ledger) = (rig.fronts[0].client(), rig.ledger.clone());
    let asked = ledger.registration();
    // Held at the look-up that comes before the hash.
    rig.workers[0].store.stall();
    let killed = async {
        rig.workers[0].says("taken").await;
        rig.workers[0].kill().await;
        rig.workers[1].start().await;
    };
    let (answer, ()) = tokio::join!(ledger.ask(&client, &asked), killed);
    let answer = answer.unwrap();
    assert_eq!((answer.status, answer.header("idempotency-replayed")), (201, None));
    rig.settle().await.assert_kept();
}

#[tokio::test]
async fn a_worker_killed_after_the_insert_has_made_the_user() {
    let Some(mut rig) = Rig::new(1, 2, &HELD).await else { return };
    rig.workers[0].start().await;
    let (client, ledger) = (rig.fronts[0].client(), rig.ledger.clone());
    let asked = ledger.registration_without_key();
    rig.workers[0].store.stall();
    let killed = async {
        rig.workers[0].says("hashing").await;
        // So that neither reply nor ack can leave.
        rig.workers[0].broker.stall();
        rig.workers[0].store.heal();
        rig.workers[0].says("handled").await;
        rig.workers[0].kill().await;
        rig.workers[0].broker.cut();
        rig.workers[1].start().await;
    };
    let (answer, ()) = tokio::join!(ledger.ask(&client, &asked), killed);
    let answer = answer.unwrap();
    assert_eq!((answer.status, answer.header("idempotency-replayed")), (201, Some("true")));
    rig.settle().await.assert_kept();
}

#[tokio::test]
async fn a_worker_killed_between_reply_and_ack_has_answered() {
    let Some(mut rig) = Rig::new(1, 2, &HELD).await else { return };
    rig.workers[0].start().await;
    let (client, ledger) = (rig.fronts[0].client(), rig.ledger.clone());
    let asked = ledger.registration();
    rig.workers[0].store.stall();
    let replied = async {
        rig.workers[0].says("taken").await;
        // The reply leaves, its confirm does not come, and the ack waits for that.
        rig.workers[0].broker.mute();
        rig.workers[0].store.heal();
    };
    let (answer, ()) = tokio::join!(ledger.ask(&client, &asked), replied);
    let answer = answer.unwrap();
    assert_eq!((answer.status, answer.header("idempotency-replayed")), (201, None));
    rig.workers[0].kill().await;
    rig.workers[0].broker.cut();

    // The message comes again, and finds its user.
    rig.workers[1].start().await;
    rig.workers[1].says("replayed").await;
    rig.settle().await.assert_kept();
}

#[tokio::test]
async fn a_call_whose_front_is_killed_is_repeated_at_another() {
    let Some(mut rig) = Rig::new(2, 1, &HELD).await else { return };
    rig.workers[0].start().await;
    let (clients, ledger) = ([0, 1].map(|n| rig.fronts[n].client()), rig.ledger.clone());
    let asked = ledger.registration();
    rig.workers[0].store.stall();
    let killed = async {
        rig.workers[0].says("taken").await;
        rig.fronts[0].kill().await;
        rig.tell_addresses();
        let again = ledger.ask(&clients[1], &asked);
        rig.workers[0].store.heal();
        again.await
    };
    let (broken, again) = tokio::join!(ledger.ask(&clients[0], &asked), killed);
    assert!(broken.is_none());
    assert_eq!(again.unwrap().status, 201);
    rig.settle().await.assert_kept();
}

#[tokio::test]
async fn the_embedded_default_keeps_what_it_answered() {
    let setup = Setup::embedded();
    let mut muster = setup.start().await;
    let fronts: Fronts = Arc::new(Mutex::new(vec![muster.client().clone()]));
    let ledger = Ledger::default();
    let load = ledger.drive(&fronts, 8);
    let mut written = String::new();
    for _ in 0..3 {
        ledger.goes_on(50).await;
        muster.signal("KILL");
        assert!(!muster.ended().await.success());
        written += &muster.output();
        muster = setup.start().await;
        *fronts.lock().unwrap() = vec![muster.client().clone()];
    }
    load.finish().await;
    ledger.repeat_all(&fronts).await;
    written += &muster.output_at_end().await;

    // The file speaks for itself, without the program.
    let part = Health::default().part("store");
    let store = store::open(&setup.settings().store, &part).await.unwrap();
    let mut users: HashMap<String, Vec<String>> = HashMap::new();
    for id in ledger.ids() {
        if let Some(user) = store.user(UserId::parse(&id).unwrap()).await.unwrap() {
            users.entry(user.username.unwrap()).or_default().push(id);
        }
    }
    let mut figures = ledger.compare(&users);
    figures.wrong.extend(secrets_in(&written));
    figures.assert_kept();
}

/// Not a test: what [`a_panic_ends_the_process_and_quotes_nothing`] runs in a process of its own.
#[tokio::test]
#[ignore = "it panics on purpose"]
async fn panics_on_purpose() {
    muster::shutdown::end_on_panic(muster::telemetry::stderr::line, || std::process::exit(70));
    let connection = muster::shutdown::contained(async { panic!("{SECRET}: a connection") });
    assert!(tokio::spawn(connection).await.is_err());
    let connection = muster::shutdown::contained(async { panic!("a text of the program") });
    assert!(tokio::spawn(connection).await.is_err());
    println!("still there");
    let thread = std::thread::spawn(|| panic!("{SECRET}: a thread"));
    let _ = thread.join();
    println!("too far");
}

#[test]
fn a_panic_ends_the_process_and_quotes_nothing() {
    let this = std::env::current_exe().unwrap();
    let mut panics = std::process::Command::new(this);
    panics.args(["--exact", "crash::panics_on_purpose", "--ignored", "--nocapture"]);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ended = panics.stderr(full).output().unwrap();
    assert_eq!(ended.status.code(), Some(70), "where nothing can be printed: {ended:?}");
    let ended = panics.stderr(std::process::Stdio::piped()).output().unwrap();
    let told = String::from_utf8_lossy(&ended.stdout);
    assert!(told.contains("still there") && !told.contains("too far"), "{told}");
    assert_eq!(ended.status.code(), Some(70), "{told}");
    let told = String::from_utf8_lossy(&ended.stderr);
    for end in ["a connection was lost to it", "the process ends"] {
        let line = told.lines().find(|line| line.contains(end));
        assert!(line.is_some_and(|line| line.contains("crash.rs:")), "{told}");
    }
    assert!(told.contains("(a text of the program): a connection was lost to it"), "{told}");
    assert!(!told.contains(SECRET), "{told}");
}
