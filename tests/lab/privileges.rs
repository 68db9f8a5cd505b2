//! Who may do what: the daemon to the machine, and others to the daemon.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use nat_tests::{Gateway, Lab, Packet, gateway};

use crate::stage::Stage;

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";

/// Once it serves, each of its threads has the five capabilities that attaching takes, and can get no other.
#[test]
fn capabilities_beyond_those_that_are_needed_are_given_up() {
    let mut stage = Stage::standard();
    // CAP_NET_ADMIN, CAP_NET_RAW, CAP_IPC_LOCK, CAP_PERFMON, CAP_BPF.
    let needed = format!("{:016x}", 1_u64 << 12 | 1 << 13 | 1 << 14 | 1 << 38 | 1 << 39);
    for _ in 0..2 {
        let tasks = fs::read_dir(format!("/proc/{}/task", stage.gateway.id().unwrap())).unwrap();
        let tasks: Vec<String> =
            tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap()).collect();
        assert!(tasks.len() >= 2, "it has threads");
        for status in tasks {
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
            };
            for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
                assert_eq!(field(set), needed, "{set} of {}", field("Name:"));
            }
            assert_eq!(field("CapInh:"), "0000000000000000");
            assert_eq!(field("CapAmb:"), "0000000000000000");
            assert_eq!(field("NoNewPrivs:"), "1");
        }
        // It is enough to serve, to attach anew, and to take over.
        stage.carries_the_next();
        stage.gateway.text(&["reload"]);
        stage.gateway.kill();
        stage.gateway.restart();
    }
}

/// Whatever the socket's mode has come to be: who is neither root nor of its group is refused.
#[test]
fn strangers_are_refused_by_their_credentials() {
    let stage = Stage::standard();
    let open: fs::Permissions = PermissionsExt::from_mode(0o777);
    let socket = stage.gateway.socket();
    fs::set_permissions(&socket, open.clone()).unwrap();
    fs::set_permissions(socket.parent().unwrap(), open).unwrap();
    let ask = |user: &str, group: &str, groups: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", user, "--regid", group, groups]).arg(stage.gateway.program());
        command.arg("--socket").arg(&socket).args(["session", "flush"]);
        command.output().expect("run setpriv")
    };
    stage.crosses(&stage.udp(CLIENT, SERVER));
    let refused = ask("65534", "65534", "--clear-groups");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("not allowed") && said.contains("65534"), "{said}");
    assert_eq!(stage.session_count(), 1);
    // Who is of its group, by either kind of membership, may.
    assert!(ask("65534", "0", "--clear-groups").status.success());
    assert!(ask("65534", "65534", "--groups=0").status.success());
    assert_eq!(stage.session_count(), 0);
}

/// The recipe of the image says what a container has to be given: it is enough to start, to serve, to be replaced, to
/// end, on a root that cannot be written to and with next to no memory that may be locked.
#[test]
fn a_container_needs_the_capabilities_that_its_recipe_names() {
    let recipe = include_str!("../../contrib/Containerfile");
    let given = recipe.split("--cap-add ").skip(1).map(|rest| rest.split_whitespace().next().unwrap());
    let given: Vec<String> = given.map(|name| format!("+{}", name.to_lowercase())).collect();
    assert_eq!(given.len(), 6, "{given:?}");
    let lab = Lab::standard();
    let mut gateway = Gateway::prepare(&lab, gateway::STANDARD);
    let own = gateway.configuration().with_file_name("container");
    let (folder, program) = (own.parent().unwrap().display().to_string(), gateway.program().to_owned());
    let run = format!(
        "#!/bin/sh\nexec unshare --mount sh -c 'mount --rbind {folder} {folder} && mount -o remount,bind,ro / && \
         exec prlimit --memlock=65536 setpriv --bounding-set=-all,{} --inh-caps=-all {} \"$@\"' sh \"$@\"\n",
        given.join(","),
        program.display()
    );
    fs::write(&own, run).unwrap();
    fs::set_permissions(&own, PermissionsExt::from_mode(0o755)).unwrap();
    gateway.use_program(&own);
    gateway.restart();
    let (client, server) = (lab.a.tap(), lab.s1.tap());
    let passes = |text: &'static str| {
        client.send(&Packet::udp(CLIENT, SERVER).payload(text));
        server.expect_payload(text);
    };
    passes("a new container");
    gateway.kill();
    passes("no container");
    gateway.restart();
    assert_eq!(gateway.sessions().len(), 1, "{}", gateway.log());
    passes("another container");
    gateway.text(&["reload"]);
    passes("another configuration");
    gateway.stop();
    assert!(gateway.pins().is_empty(), "{:?}", gateway.pins());
    // And no more than is needed: without any one of them it says which.
    for missing in &given {
        let others: Vec<&str> = given.iter().filter(|one| *one != missing).map(String::as_str).collect();
        let mut command = Command::new("setpriv");
        command.args([&format!("--bounding-set=-all,{}", others.join(",")), "--inh-caps=-all"]);
        let output = command.arg(&program).args(["run", "--config"]).arg(gateway.configuration()).output();
        let output = output.expect("run setpriv");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let name = format!("missing CAP_{} ", missing[1..].to_uppercase());
        assert!(!output.status.success() && said.contains(&name), "{said}");
    }
}
