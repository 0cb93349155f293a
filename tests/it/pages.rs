//! The pages for people: when they are served, and how.

use crate::support::services::{PRODUCTION, Pair, QueueKind, StoreKind};
use crate::support::{Client, Setup};

/// What a page is made of, besides itself.
const PARTS: [(&str, &str); 5] = [
    ("/", "text/html; charset=utf-8"),
    ("/pages/signup.js", "text/javascript; charset=utf-8"),
    ("/pages/style.css", "text/css; charset=utf-8"),
    ("/pages/icon.svg", "image/svg+xml"),
    ("/pages/mounts.json", "application/json; charset=utf-8"),
];

async fn status(client: &Client, path: &str) -> u16 {
    client.get(path, &[]).await.status
}

#[tokio::test]
async fn nothing_on_a_page_comes_from_elsewhere() {
    let muster = Setup::embedded().start().await;
    for (path, media_type) in PARTS {
        let answer = muster.client().get(path, &[]).await;
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.header("content-type"), Some(media_type), "{path}");
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self';"));
        assert!(!policy.contains("unsafe") && policy.contains("frame-ancestors 'none'"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
        let text = String::from_utf8_lossy(&answer.bytes).replace("http://www.w3.org/2000/svg", "");
        assert!(!text.contains("http:") && !text.contains("https:"), "{path}");
    }
}

#[tokio::test]
async fn a_file_that_is_known_is_not_sent_again() {
    let muster = Setup::embedded().start().await;
    let whole = muster.client().get("/", &[]).await;
    let tag = whole.header("etag").unwrap();
    let again = muster.client().get("/", &[("if-none-match", tag)]).await;
    assert_eq!((again.status, again.bytes.len()), (304, 0));
    assert_eq!(again.header("etag"), Some(tag));
    assert_eq!(muster.client().get("/", &[("if-none-match", "\"other\"")]).await.status, 200);
    let head = muster.client().send("HEAD", "/", &[], "").await.unwrap();
    assert_eq!((head.status, head.bytes.len()), (200, 0));
    let posted = muster.client().send("POST", "/", &[], "").await.unwrap();
    assert_eq!((posted.status, posted.header("allow")), (405, Some("GET, HEAD, OPTIONS")));
}

#[tokio::test]
async fn pages_are_off_unless_all_is_embedded_or_somebody_says_so() {
    let off = Setup::embedded().with("MUSTER_FRONT_PAGES", "off").start().await;
    for (path, _) in PARTS {
        assert_eq!(status(off.client(), path).await, 404, "{path}");
    }
    for pair in [Pair(QueueKind::Local, StoreKind::Mongo), PRODUCTION] {
        if !pair.is_there() {
            continue;
        }
        let muster = Setup::new(pair).start().await;
        assert_eq!(status(muster.client(), "/").await, 404, "{pair:?}");
        let muster = Setup::new(pair).with("MUSTER_FRONT_PAGES", "on").start().await;
        assert_eq!(status(muster.client(), "/").await, 200, "{pair:?}");
    }
}

#[tokio::test]
async fn a_mount_comes_before_a_page() {
    let setup =
        Setup::embedded().with("MUSTER_FRONT_MOUNTS", "/ = register,*/style.css = username");
    let muster = setup.start().await;
    assert_eq!(status(muster.client(), "/").await, 405);
    assert_eq!(status(muster.client(), "/pages/style.css").await, 405);
    assert_eq!(status(muster.client(), "/pages/icon.svg").await, 200);
    let mounts = muster.client().get("/pages/mounts.json", &[]).await.json();
    assert_eq!((&mounts[0]["path"], &mounts[0]["contract"]), (&"/".into(), &"register".into()));
}
