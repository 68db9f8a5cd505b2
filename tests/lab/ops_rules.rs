//! Rules added and deleted while natgw runs, and written into its file.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use nat_tests::gateway;
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount},
    process::{Pid, Signal, kill_process},
};
use serde_json::json;

use crate::stage::{Stage, public, source};

const SERVER: &str = "198.51.100.1:5000";
const CLIENT: &str = "192.168.1.10:40000";

/// The standard set-up as somebody has written it who explains what he does.
fn commented() -> String {
    let rule = "[[snat]]\nname = \"office\"";
    gateway::STANDARD
        .replace(rule, &format!("# All of the office,\n# with what guests need.\n{rule} # since spring"))
}

fn file(stage: &Stage) -> String {
    fs::read_to_string(stage.gateway.configuration()).expect("the configuration")
}

/// What a command that has to fail says.
fn refused(stage: &Stage, arguments: &[&str]) -> String {
    let output = stage.gateway.output(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn rules_come_and_go_while_packets_pass() {
    let stage = Stage::with(&commented());
    let before = file(&stage);
    stage.crosses(&stage.udp(CLIENT, SERVER));
    // A forward that is not there, there, and gone again.
    let knock = || stage.syn("198.51.100.2:6000", &public(8080));
    stage.stopped(&knock(), &stage.b);
    let added = stage.gateway.natgw(&[
        "rule",
        "add",
        "forward",
        "--name",
        "web",
        "--protocol",
        "tcp",
        "--external",
        "wan:8080",
        "--internal",
        "192.168.1.11:80",
        "--json",
    ]);
    assert_eq!((&added["changes"], &added["kept"]), (&json!(["forward web: added"]), &json!(1)), "{added}");
    assert!(added["warnings"].to_string().contains("--save"), "{added}");
    stage.reaches(&knock(), &stage.b);
    // A rule before the others is tried before them.
    stage.gateway.text(&[
        "rule",
        "add",
        "snat",
        "--name",
        "guests",
        "--source",
        "192.168.1.12",
        "--to",
        "203.0.113.7",
        "--before",
        "office",
    ]);
    assert_eq!(source(&stage.crosses(&stage.udp("192.168.1.12:41000", SERVER))), "203.0.113.7:41000");
    let names = |stage: &Stage| -> Vec<String> {
        let rules = stage.gateway.natgw(&["rule", "list", "--json"]);
        let rules = rules.as_array().cloned().unwrap_or_default();
        rules.iter().filter_map(|rule| Some(rule["name"].as_str()?.to_owned())).collect()
    };
    assert_eq!(names(&stage), ["web", "guests", "office"]);
    assert_eq!(file(&stage), before, "nothing was saved");
    // By its number, and by its name.
    let deleted = stage.gateway.text(&["rule", "delete", "1"]);
    assert!(deleted.starts_with("deleted: 2 sessions kept, 1 ended\n  forward web: removed\n"), "{deleted}");
    stage.stopped(&knock(), &stage.b);
    stage.gateway.text(&["rule", "delete", "guests"]);
    assert_eq!(names(&stage), ["office"]);
    // The established flow has not noticed any of it.
    assert_eq!(source(&stage.crosses(&stage.udp(CLIENT, SERVER))), public(40000));
    for (arguments, said) in [
        (&["rule", "delete", "nobody"][..], "there is no rule `nobody`"),
        (&["rule", "add", "snat", "--to", "nowhere"], "with the change, configuration"),
        (&["rule", "add", "snat", "--to", "masquerade", "--before", "nobody"], "there is no rule `nobody`"),
        (
            &[
                "rule",
                "add",
                "static",
                "--external",
                "203.0.113.9",
                "--internal",
                "192.168.1.9",
                "--before",
                "office",
            ],
            "is no static",
        ),
    ] {
        let words = refused(&stage, arguments);
        assert!(words.contains(said) && words.contains("hint: "), "{words}");
    }
    assert_eq!(names(&stage), ["office"]);
}

#[test]
fn what_is_saved_is_in_the_file_with_every_comment() {
    let mut stage = Stage::with(&commented());
    let before = file(&stage);
    let path = stage.gateway.configuration();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("set the mode");
    // One that is not saved, and one that is.
    stage.gateway.text(&[
        "rule",
        "add",
        "static",
        "--name",
        "mail",
        "--external",
        "203.0.113.50",
        "--internal",
        "192.168.1.11",
    ]);
    let said = stage.gateway.text(&[
        "rule",
        "add",
        "snat",
        "--name",
        "guests",
        "--source",
        "192.168.1.12",
        "--to",
        "none",
        "--before",
        "2",
        "--save",
    ]);
    assert_eq!(said, refused_nothing(&path.display().to_string()));
    let guests = "[[snat]]\nname = \"guests\"\nsource = [\"192.168.1.12\"]\nto = \"none\"\n";
    let after = file(&stage);
    assert_eq!(after.replace(&format!("\n{guests}"), ""), before, "all else is as it was");
    assert!(after.find(guests) < after.find("name = \"office\" # since spring"), "{after}");
    assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o640);
    // It is there after a restart, the other is not.
    stage.gateway.stop();
    stage.gateway.restart();
    let kinds = stage.gateway.natgw(&["rule", "list", "--json"]);
    let names: Vec<&str> =
        kinds.as_array().into_iter().flatten().filter_map(|rule| rule["name"].as_str()).collect();
    assert_eq!(names, ["guests", "office"]);
    // A rule that somebody has changed in the file is not deleted there by what it was.
    fs::write(&path, after.replace("192.168.1.12", "192.168.1.11")).expect("change a rule");
    let words = refused(&stage, &["rule", "delete", "guests", "--save"]);
    assert!(words.contains("the file has no snat guests like that in force"), "{words}");
    // What somebody writes into the file meanwhile stays.
    fs::write(&path, format!("{after}\n# A note.\n")).expect("write a note");
    stage.gateway.text(&["rule", "delete", "guests", "--save"]);
    assert_eq!(file(&stage), format!("{before}\n# A note.\n"));
    assert_eq!(
        fs::read_dir(path.parent().expect("a folder"))
            .expect("list it")
            .filter(|entry| {
                entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().ends_with(".new"))
            })
            .count(),
        0
    );
}

fn refused_nothing(path: &str) -> String {
    format!("added: 0 sessions kept, 0 ended\n  snat guests: added\nsaved in {path}\n")
}

/// A file system without room, one that may not be written to, and a file with faults: said, and nothing changes.
#[test]
fn what_cannot_be_saved_changes_nothing() {
    let stage = Stage::with(&commented());
    let path = stage.gateway.configuration();
    let arguments = ["rule", "add", "snat", "--name", "guests", "--to", "none", "--save"];
    let unchanged = |said: &str, hint: &str| {
        let words = refused(&stage, &arguments);
        assert!(words.contains(said) && words.contains(hint), "{words}");
        assert!(words.contains("nothing was changed"), "{words}");
        let rules = stage.gateway.natgw(&["rule", "list", "--json"]);
        assert_eq!(rules.as_array().map(Vec::len), Some(1), "{rules}");
    };
    // Faults in the file that is there.
    let text = file(&stage);
    fs::write(&path, text.replace("side = \"outside\"", "side = \"upside\"")).expect("write a fault");
    unchanged("the file: configuration", "upside");
    fs::remove_file(&path).expect("remove the file");
    unchanged("--save: read", "No such file");
    fs::write(&path, &text).expect("write it again");
    stage.gateway.text(&arguments);
}

#[test]
fn reload_says_what_has_changed_and_so_does_sighup() {
    let stage = Stage::standard();
    stage.crosses(&stage.udp(CLIENT, SERVER));
    let more = "[[forward]]\nname = \"web\"\nprotocol = \"tcp\"\nexternal = \"wan:8080\"\ninternal = \"192.168.1.11:80\"\n[timeouts]\nudp = \"3m\"\n";
    stage.gateway.configure(&format!("{}{more}", gateway::STANDARD));
    assert_eq!(
        stage.gateway.text(&["reload"]),
        "reloaded: 1 session kept, 0 ended\n  forward web: added\n  [timeouts]: changed\n"
    );
    stage
        .gateway
        .configure(&gateway::STANDARD.replace("name = \"office\"\n", "name = \"office\"\nhairpin = false\n"));
    let id = i32::try_from(stage.gateway.id().expect("it runs")).expect("process ids fit");
    kill_process(Pid::from_raw(id).expect("not process 0"), Signal::HUP).expect("send SIGHUP");
    stage.gateway.wait_until("it is reloaded", Duration::from_secs(5), |gateway| {
        gateway.log().contains("snat office: changed, forward web: removed, [timeouts]: changed")
            || gateway.log().contains("forward web: removed, snat office: changed, [timeouts]: changed")
    });
    // A file with faults changes nothing, and is explained.
    stage.gateway.configure(&gateway::STANDARD.replace("masquerade", "masquerad"));
    let words = refused(&stage, &["reload"]);
    assert!(words.contains("natgw.toml:15") && words.contains("hint: "), "{words}");
    let check =
        stage.gateway.output(&["check", "--config", stage.gateway.configuration().to_str().expect("UTF-8")]);
    assert_eq!(check.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&check.stderr).contains("natgw.toml:15"));
    kill_process(Pid::from_raw(id).expect("not process 0"), Signal::HUP).expect("send SIGHUP");
    stage.gateway.wait_until("it is refused", Duration::from_secs(5), |gateway| {
        gateway.log().contains("the old configuration stays")
    });
    assert_eq!(source(&stage.crosses(&stage.udp(CLIENT, SERVER))), public(40000));
}

/// The file lies on a file system of its own, which is full, or may only be read.
#[test]
fn a_full_or_read_only_file_system_is_explained() {
    let mut stage = Stage::standard();
    let folder = stage.gateway.configuration().with_extension("etc");
    fs::create_dir(&folder).expect("make a folder");
    mount("natgw", &folder, "tmpfs", MountFlags::empty(), Some(c"size=64k")).expect("mount a small tmpfs");
    let there = folder.join("natgw.toml");
    fs::copy(stage.gateway.configuration(), &there).expect("copy the configuration");
    // The daemon's file is a link to it.
    fs::remove_file(stage.gateway.configuration()).expect("remove the file");
    std::os::unix::fs::symlink(&there, stage.gateway.configuration()).expect("link to it");
    stage.gateway.restart();
    let before = file(&stage);
    let arguments = ["rule", "add", "snat", "--name", "guests", "--to", "none", "--save"];
    let filler = folder.join("filler");
    let mut size = 64 * 1024;
    while size > 0 && fs::write(&filler, vec![0; size]).is_err() {
        size -= 1024;
    }
    let words = refused(&stage, &arguments);
    assert!(words.contains("No space left on device") && words.contains("make room"), "{words}");
    fs::remove_file(&filler).expect("remove what fills it");
    mount_remount(&folder, MountFlags::RDONLY, "").expect("make it read-only");
    let words = refused(&stage, &arguments);
    assert!(words.contains("Read-only file system") && words.contains("ReadWritePaths"), "{words}");
    mount_remount(&folder, MountFlags::empty(), "").expect("make it writable again");
    assert_eq!(file(&stage), before);
    stage.gateway.text(&arguments);
    assert!(file(&stage).contains("guests"));
    assert!(
        fs::symlink_metadata(stage.gateway.configuration()).expect("a link").is_symlink(),
        "it is still a link"
    );
    stage.gateway.stop();
    let _ = unmount(&folder, UnmountFlags::DETACH);
}
