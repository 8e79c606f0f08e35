//! Redaction: registered values never pass, guesses catch what people forget to register.

use audit::{Entry, Outcome, Redactor};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{Place, run, ticking};

#[test]
fn text_gives_itself_away() {
    let check = |text: &str, expect: &str| assert_eq!(Redactor::new().text(text), expect, "{text}");
    check("nothing to hide: 12 = 12", "nothing to hide: 12 = 12");
    check(
        "https://example.org:8006/a@b?x=1",
        "https://example.org:8006/a@b?x=1",
    );
    check("postgres://u:p@ss@db/x", "postgres://***@db/x");
    check("postgres://u:pa/ss@db/x", "postgres://***@db/x");
    check(
        "clone https://tok@h/x and http://[::1]:80/@x",
        "clone https://***@h/x and http://[::1]:80/@x",
    );
    check("--password=a b", "--password=***");
    check("DB_PASSWORD=a b&c", "DB_PASSWORD=***");
    check(
        "run with DB_PASSWORD=abc now",
        "run with DB_PASSWORD=*** now",
    );
    check("GET /x?token=abc&y=1 done", "GET /x?token=*** done");
    check("Authorization: Basic abc, x", "Authorization: ***");
    check(
        "curl -H 'Authorization: Basic abc' http://h",
        "curl -H 'Authorization: ***' http://h",
    );
    check("got Bearer abc.def ok", "got Bearer *** ok");
    check(
        r#"{"user":"a","password":"x\"y","z":1}"#,
        r#"{"user":"a","password":***,"z":1}"#,
    );
    check(
        r#"{\"api_key\": \"xy\", \"z\":1}"#,
        r#"{\"api_key\": ***, \"z\":1}"#,
    );
    check(
        "a: b\npassphrase: two words\nc: d",
        "a: b\npassphrase: ***\nc: d",
    );
    check("tool --token abc --verbose", "tool --token *** --verbose");
    check("tool --token 'a b' --verbose", "tool --token *** --verbose");
    check(
        "sudo mysql -uroot -phunter2 db",
        "sudo mysql -uroot -p*** db",
    );
    check(
        "/usr/bin/curl -u me:pw http://h",
        "/usr/bin/curl -u *** http://h",
    );
    check("key ghp_0123456789abcdefABCDEF.", "key ***");
    check("PVE:root@pam:65A::c2ln= end", "*** end");
    check(
        "x -----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY----- y",
        "x *** y",
    );
    check("-----BEGIN PRIVATE KEY-----\nabc", "***");
    check(
        "-----BEGIN CERTIFICATE-----\nabc",
        "-----BEGIN CERTIFICATE-----\nabc",
    );
}

#[test]
fn values_by_key_and_argv() {
    let value = json!({
        "argv": ["x", "--token", "abc", "-e", "API_KEY=a b", "--no-password", "keep", "--pin-token", 12],
        "env": {"HOME": "/root", "MYSQL_PWD": "x", "n": 5},
        "list": [{"name": "DB_PASS", "value": "x"}, {"name": "HOME", "value": "/root"}],
        "password": {"deep": ["x"]}, "secret": null, "token": true,
    });
    assert_eq!(
        Redactor::new().value(value),
        json!({
            "argv": ["x", "--token", "***", "-e", "API_KEY=***", "--no-password", "keep", "--pin-token", "***"],
            "env": {"HOME": "/root", "MYSQL_PWD": "***", "n": 5},
            "list": [{"name": "DB_PASS", "value": "***"}, {"name": "HOME", "value": "/root"}],
            "password": "***", "secret": null, "token": true,
        })
    );
    let argv = Redactor::new().argv(&["sshpass", "-p", "pw", "ssh", "-p", "22"]);
    assert_eq!(argv, ["sshpass", "-p", "***", "ssh", "-p", "***"]);
}

#[test]
fn registered_values_are_hidden_in_every_form() {
    let redactor = Redactor::new();
    redactor.register("hunter2 \"secret\n").unwrap();
    redactor.register("12345678").unwrap();
    for text in [
        "is hunter2 \"secret!",
        "q=hunter2%20%22secret",
        "q=hunter2+%22secret",
        r#"{"x":"hunter2 \"secret"}"#,
        "68756e746572322022736563726574",
        "x aHVudGVyMiAic2VjcmV0 x",
    ] {
        assert!(redactor.text(text).contains("***"), "{text}");
        assert!(redactor.name(text).contains("***"), "{text}");
    }
    assert_eq!(
        redactor.value(json!({"a": 12345678, "x12345678": 1})),
        json!({"a": "***", "x***": 1})
    );
    assert_eq!(redactor.name("token:ci"), "token:ci");
    assert!(redactor.register("abc ").is_err());
    assert!(!format!("{redactor:?}").contains("hunter"));
    redactor.forget("12345678");
    assert_eq!(redactor.text("12345678"), "12345678");
}

#[test]
fn a_key_file_is_hidden_line_by_line() {
    let redactor = Redactor::new();
    let key = "-----BEGIN X-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END X-----\n";
    redactor.register(key).unwrap();
    assert_eq!(redactor.text("line hkiG9w0BAQEFAASC only"), "line *** only");
    assert_eq!(redactor.text("-----BEGIN X-----"), "-----BEGIN X-----");
}

#[test]
fn hostile_text_takes_no_quadratic_time() {
    let began = std::time::Instant::now();
    for part in [
        "password=",
        "://",
        "PVE:",
        "-eyJ",
        "curl ",
        "-----BEGIN ",
        "--token ",
        "\"",
        "password: \"",
        "bearer ",
        " ",
        "a://b:c",
        "\\\"",
        ":",
        "Authorization:",
    ] {
        Redactor::new().text(&part.repeat(1_000_000 / part.len()));
    }
    assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
}

#[test]
fn nothing_secret_reaches_the_file() {
    let place = Place::new();
    let options = ticking();
    let redactor = options.redactor.clone();
    run(async {
        let log = audit::Log::open(place.path(), options).await.unwrap();
        redactor.register("s3cr3t-value").unwrap();
        let entry = Entry::new("s3cr3t-value", "x s3cr3t-value", "http://u:s3cr3t-value@h")
            .channel("s3cr3t-value")
            .detail(json!(["s3cr3t-value", {"s3cr3t-value": "--password=other"}]));
        let intent = log.intent(entry.clone()).await.unwrap();
        intent
            .finish(Outcome::failed("was s3cr3t-value").channel("s3cr3t-value"))
            .await
            .unwrap();
        log.refused(entry, "s3cr3t-value").await.unwrap();
        log.close().await;
    });
    let text = place.text();
    assert!(
        !text.contains("s3cr3t") && !text.contains("other"),
        "{text}"
    );
}

fn contains(value: &Value, secret: &str) -> bool {
    match value {
        Value::Null | Value::Bool(_) => false,
        Value::Number(n) => n.to_string().contains(secret),
        Value::String(s) => s.contains(secret),
        Value::Array(a) => a.iter().any(|v| contains(v, secret)),
        Value::Object(o) => o
            .iter()
            .any(|(k, v)| k.contains(secret) || contains(v, secret)),
    }
}

proptest! {
    #[test]
    fn a_registered_secret_never_passes(
        secrets in proptest::collection::vec("[ab*\"\\\\'=:%-]{4,8}|[!-~]{4,12}|\\PC{4,12}|[0-9]{4,6}", 1..4),
        around in proptest::collection::vec("[ab*\"\\\\'=: %-]{0,5}|\\PC{0,8}|--token ?|password=", 5),
        number in any::<u32>(),
    ) {
        let redactor = Redactor::new();
        let mut known = Vec::new();
        for secret in &secrets {
            if redactor.register(secret).is_ok() {
                known.push(secret.trim().to_owned());
            }
        }
        let all: String = around.iter().zip(secrets.iter().cycle()).map(|(a, s)| format!("{a}{s}")).collect();
        let value = json!({
            all.as_str(): [all, {"x": secrets[0], "argv": around}, number, secrets],
            "quoted": json!({"inner": secrets[0]}).to_string(),
        });
        let text = redactor.text(&all);
        let name = redactor.name(&all);
        let argv = redactor.argv(&[all.as_str(), secrets[0].as_str(), around[0].as_str()]);
        let value = redactor.value(value);
        for secret in &known {
            prop_assert!(!text.contains(secret), "{text:?} holds {secret:?}");
            prop_assert!(!name.contains(secret), "{name:?} holds {secret:?}");
            prop_assert!(!argv.iter().any(|a| a.contains(secret)), "{argv:?} holds {secret:?}");
            // "argv", "x", "inner", "quoted" are longer or shorter than what could be registered by chance.
            prop_assert!(!contains(&value, secret), "{value} holds {secret:?}");
        }
    }

    #[test]
    fn redaction_never_fails_on_any_text(text in "\\PC{0,60}|[a-z=:\"'\\\\ @/?-]{0,60}") {
        let redactor = Redactor::new();
        redactor.text(&text);
        redactor.argv(&text.split(' ').collect::<Vec<_>>());
    }
}
