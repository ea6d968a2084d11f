//! Modes, ranges and lists of what a guest may reach.
use super::*;

fn target(text: &str) -> Target {
    Target::try_from(text.to_owned()).unwrap()
}

#[test]
fn a_mode_is_what_it_is_called() {
    for mode in Mode::ALL {
        assert_eq!(mode.to_string().parse(), Ok(mode));
        assert_eq!(serde_json::to_string(&mode).unwrap(), format!("\"{mode}\""));
    }
    assert!("NAT".parse::<Mode>().is_err_and(|error| error.to_string().contains("NAT")));
}

#[test]
fn private_networks_are_not_public() {
    for text in [
        "0.0.0.0",
        "10.0.0.1",
        "10.255.255.255",
        "100.64.0.1",
        "100.127.255.255",
        "127.0.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "172.17.0.2",
        "172.31.255.255",
        "192.0.0.8",
        "192.168.0.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.2",
        "203.0.113.5",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
    ] {
        assert!(!is_public(text.parse().unwrap()), "{text}");
    }
    for text in [
        "1.1.1.1",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "172.15.255.255",
        "172.32.0.0",
        "192.0.1.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
    ] {
        assert!(is_public(text.parse().unwrap()), "{text}");
    }
    // As the firewall's set wants them.
    for pair in NOT_PUBLIC.windows(2) {
        let last = Range::new(pair[0].0, pair[0].1).unwrap();
        assert_eq!(last.first(), pair[0].0);
        assert!(last.last().to_bits() + 1 < pair[1].0.to_bits());
    }
}

#[test]
fn a_target_has_one_form() {
    for text in ["10.0.0.0/8", "0.0.0.0/0", "1.2.3.4/32:443/tcp", "10.0.0.0/8:53/udp"] {
        assert_eq!(target(text).to_string(), text);
    }
    for text in [
        "",
        "10.0.0.0",
        "10.0.0.1/8",
        "10.0.0.0/08",
        "10.0.0.0/33",
        "10.0.0.0/8:443",
        "10.0.0.0/8:0443/tcp",
        "10.0.0.0/8:65536/tcp",
        "10.0.0.0/8:1/sctp",
        "10.0.0.0/+8",
        "::/0",
        "name/32",
        "010.0.0.0/8",
    ] {
        assert!(Target::try_from(text.to_owned()).is_err(), "{text}");
    }
}

#[test]
fn what_another_covers_is_left_out() {
    let list = |texts: &[&str]| texts.iter().map(|text| target(text)).collect::<Vec<_>>();
    let reach = |targets| Reach { mode: Mode::Allow, targets, group: None };
    let given = list(&[
        "10.1.0.0/16",
        "10.0.0.0/8",
        "10.2.0.0/16:80/tcp",
        "10.2.0.0/15:80/tcp",
        "10.2.0.0/15:80/udp",
        "10.0.0.0/8",
    ]);
    let kept = list(&["10.0.0.0/8", "10.2.0.0/15:80/tcp", "10.2.0.0/15:80/udp"]);
    assert_eq!(reach(given).checked().unwrap().targets, kept);
    let many =
        |count: u32| (0..count).map(|n| Target { range: Range::one(Ipv4Addr::from_bits(n)), service: None }).collect();
    assert!(reach(many(256)).checked().is_some());
    assert!(reach(many(257)).checked().is_none());
    assert!(Reach { mode: Mode::Nat, ..reach(many(1)) }.checked().is_none());
}

#[test]
fn between_two_passes_nothing_that_neither_allows() {
    let allow = |text: &str| Reach { mode: Mode::Allow, targets: vec![target("1.0.0.0/8"), target(text)], group: None };
    let both = allow("2.0.0.0/8").common(&allow("3.0.0.0/8"));
    assert_eq!((both.mode, both.targets), (Mode::Allow, vec![target("1.0.0.0/8")]));
    for (from, to, both) in [
        (Mode::Nat, Mode::Public, Mode::Public),
        (Mode::Public, Mode::Nat, Mode::Public),
        (Mode::Nat, Mode::None, Mode::None),
        (Mode::Nat, Mode::Nat, Mode::Nat),
    ] {
        assert_eq!(Reach::of(from).common(&Reach::of(to)), Reach::of(both));
    }
    assert_eq!(Reach::of(Mode::Nat).common(&allow("2.0.0.0/8")), Reach::default());
    let group = |byte| Reach { group: Digest::from_bytes([byte; 32]).ok(), ..Reach::default() };
    assert_eq!(group(1).common(&group(1)), group(1));
    assert_eq!(group(1).common(&group(2)), Reach::default());
}
