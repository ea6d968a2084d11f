//! The packaged script that lets guests through the host's own FORWARD chain, in a namespace: where
//! it puts its rules among those of Docker, ufw and an administrator.
#![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "a test fails by panicking")]
mod common;

use common::{in_namespace, is_root, run, skipped, works};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/host-firewall/host-firewall");

/// The chain, with ours as one word.
fn chain() -> Vec<String> {
    let rules = run("iptables-nft -S FORWARD");
    let mut words = Vec::new();
    for rule in rules.lines().filter_map(|line| line.strip_prefix("-A FORWARD ")) {
        let word = if rule.contains("banger-static") { "OURS" } else { rule };
        words.push(word.to_owned());
    }
    words
}

/// Runs it; what the chain is, and that a second run changes nothing.
fn assert_chain(expected: &[&str], why: &str) {
    run(SCRIPT);
    assert_eq!(chain(), expected, "{why}");
    assert_eq!(run(SCRIPT), "", "{why}: a second run says that it did something");
    assert_eq!(chain(), expected, "{why}: a second run");
}

#[test]
fn its_rules_stand_behind_everything_that_is_somebodys_will() {
    if !works("command -v iptables-nft && command -v awk") {
        return skipped("no iptables-nft or awk");
    }
    if !is_root() {
        return;
    }
    in_namespace(async {
        assert_eq!(run(SCRIPT), "", "no chain, no rules");
        assert!(!works("iptables-nft-save | grep -q banger"));

        // Docker: its chain for administrators comes first, the policy drops.
        run("iptables-nft -P FORWARD DROP; iptables-nft -N DOCKER-USER; iptables-nft -A FORWARD -j DOCKER-USER");
        run("iptables-nft -A FORWARD -o docker0 -j ACCEPT");
        let docker = ["-j DOCKER-USER", "-o docker0 -j ACCEPT", "OURS", "OURS"];
        assert_chain(&docker, "Docker");
        // An administrator's default there is theirs, not the chain's end.
        run("iptables-nft -A DOCKER-USER -j DROP");
        assert_chain(&docker, "an administrator's chain that drops everything");
        run("iptables-nft -A FORWARD -s 172.16.0.0/24 -d 10.0.0.0/8 -j DROP");
        let restricted = "-s 172.16.0.0/24 -d 10.0.0.0/8 -j DROP";
        assert_chain(&["-j DOCKER-USER", "-o docker0 -j ACCEPT", restricted, "OURS", "OURS"], "appended later");
        for end in [
            "-j DROP",
            "-j REJECT --reject-with icmp-host-prohibited",
            "-m comment --comment \"the very end\" -j DROP",
            "-m comment --comment end -j DROP",
        ] {
            run(&format!("iptables-nft -A FORWARD {end}"));
            let expected = ["-j DOCKER-USER", "-o docker0 -j ACCEPT", restricted, "OURS", "OURS", end];
            assert_chain(&expected, end);
            run(&format!("iptables-nft -D FORWARD {end}"));
        }
        // One of ours is gone, or they stand apart.
        run("iptables-nft -D FORWARD 5; iptables-nft -I FORWARD 5 -i lan0 -j ACCEPT");
        let apart = ["-j DOCKER-USER", "-o docker0 -j ACCEPT", restricted, "-i lan0 -j ACCEPT", "OURS", "OURS"];
        assert_chain(&apart, "one is missing");
        run(&format!("{SCRIPT} remove"));
        assert_eq!(chain(), apart[..4], "removed");

        // An earlier version's, which kept guests of one private network apart.
        run("iptables-nft -I FORWARD 1 -i bgr+ -o bgr+ -m comment --comment banger-static -j DROP");
        assert_chain(&apart, "an earlier version's");
        run("iptables-nft -C FORWARD -i bgr-+ -m comment --comment banger-static -j ACCEPT");
        // Nor does an earlier version's let through what comes from a link of an administrator's.
        run(&format!("{SCRIPT} remove; iptables-nft -A FORWARD -i bgr+ -m comment --comment banger-static -j ACCEPT"));
        run(
            "iptables-nft -A FORWARD -o bgr+ -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment banger-static -j ACCEPT",
        );
        assert_chain(&apart, "an earlier version's, in its place");
        assert!(!run("iptables-nft -S FORWARD").contains("bgr+"));
        run(&format!("{SCRIPT} remove"));
        assert_eq!(chain(), apart[..4], "removed again");

        // ufw: before it says what it has not let through.
        run("iptables-nft -F FORWARD");
        let ufw =
            ["ufw-before-logging-forward", "ufw-before-forward", "ufw-after-forward", "ufw-after-logging-forward"];
        for name in ufw.iter().chain(&["ufw-reject-forward", "ufw-track-forward"]) {
            run(&format!("iptables-nft -N {name}; iptables-nft -A FORWARD -j {name}"));
        }
        let expected = [
            "-j ufw-before-logging-forward",
            "-j ufw-before-forward",
            "-j ufw-after-forward",
            "OURS",
            "OURS",
            "-j ufw-after-logging-forward",
            "-j ufw-reject-forward",
            "-j ufw-track-forward",
        ];
        assert_chain(&expected, "ufw");
    });
}
