//! What stock `ssh` is told about a VM, for `vm ssh` as options and for `ssh VM.banger` as a file.
//!
//! In ssh_config(5) the first value of a setting counts, so a setting that is here cannot be
//! changed by the user's `Host *` further down. What adds up instead of being replaced
//! (forwardings, further keys) cannot be taken back.

use super::HOSTS;
use anyhow::Context as _;
use std::path::Path;

/// How a VM is reached and known, and who logs in: never the user's configuration to say.
const FIXED: [&str; 19] = [
    "User root",
    "Port 22",
    "StrictHostKeyChecking yes",
    "UserKnownHostsFile /dev/null",
    "GlobalKnownHostsFile /dev/null",
    // A guest must not add keys to what is trusted.
    "UpdateHostKeys no",
    "VerifyHostKeyDNS no",
    "CheckHostIP no",
    "IdentitiesOnly yes",
    // Our key and nothing else. A hostile guest would otherwise ask for "your password", and get
    // it.
    "PreferredAuthentications publickey",
    "PubkeyAuthentication yes",
    "PasswordAuthentication no",
    "KbdInteractiveAuthentication no",
    "HostbasedAuthentication no",
    "NumberOfPasswordPrompts 0",
    // A sandbox gets the user's agent only when asked for (`-A`), never by `Host *`. The guest's
    // agent refuses X11; ssh should not ask.
    "ForwardAgent no",
    "ForwardX11 no",
    "AddKeysToAgent no",
    // An agent that stands still says nothing, and its kernel takes the connection all the same.
    "ConnectTimeout 30",
];

/// What a user may have chosen for all hosts and what a VM does not have, or what ends a session
/// before it begins. In a file only: as options these would clash with flags such as `-N`.
const NEUTRAL: [&str; 20] = [
    "HostName %h",
    "CanonicalizeHostname no",
    "NoHostAuthenticationForLocalhost no",
    "RevokedHostKeys none",
    "PKCS11Provider none",
    "ProxyUseFdpass no",
    "RemoteCommand none",
    "RequestTTY auto",
    "SessionType default",
    "StdinNull no",
    "ForkAfterAuthentication no",
    "Tunnel no",
    // A port that is taken must not end the session.
    "ExitOnForwardFailure no",
    // `+` is this program's own list and what the guest's server has, whatever `Host *` leaves of
    // it.
    "KexAlgorithms +curve25519-sha256",
    "Ciphers +aes256-gcm@openssh.com",
    "MACs +hmac-sha2-256-etm@openssh.com",
    "HostKeyAlgorithms +ssh-ed25519",
    "PubkeyAcceptedAlgorithms +ssh-ed25519",
    "SendEnv LANG LC_*",
    "SendEnv LANGUAGE TZ COLORTERM",
];

/// Where things are on this host.
pub(crate) struct Places<'a> {
    /// This program.
    pub(crate) program: &'a Path,
    /// The user's key for VMs.
    pub(crate) key: &'a Path,
}

impl Places<'_> {
    fn settings(&self) -> anyhow::Result<Vec<String>> {
        let (program, key) = (quoted(self.program)?, quoted(self.key)?);
        let mut all = vec![
            // A shell runs this one. OpenSSH refuses host names that mean something to a shell.
            format!("ProxyCommand {} vm proxy -- '%n'", shell_word(self.program)?),
            format!("KnownHostsCommand {program} vm host-key -- %n"),
            format!("IdentityFile {key}"),
        ];
        all.extend(FIXED.map(str::to_owned));
        Ok(all)
    }

    /// For `ssh -F none`, where no file is read.
    ///
    /// # Errors
    /// For a path that `ssh` cannot be given.
    pub(crate) fn options(&self) -> anyhow::Result<Vec<String>> {
        let variables =
            NEUTRAL.iter().filter(|setting| setting.starts_with("SendEnv")).map(|&setting| setting.to_owned());
        Ok(self.settings()?.into_iter().chain(variables).flat_map(|setting| ["-o".to_owned(), setting]).collect())
    }

    /// The file that `~/.ssh/config` includes.
    ///
    /// # Errors
    /// For a path that `ssh` cannot be given.
    pub(crate) fn fragment(&self) -> anyhow::Result<String> {
        let mut text = format!(
            "# Made by `banger ssh-config`: your VMs, as VM{HOSTS}. Administrators reach another user's as VM.USER{HOSTS}.\n\
             Host *{HOSTS}\n"
        );
        for setting in self.settings()?.iter().map(String::as_str).chain(NEUTRAL) {
            text.push_str(&format!("    {setting}\n"));
        }
        Ok(text)
    }
}

/// A path as one word of ssh_config(5), with its own `%` doubled.
fn quoted(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().filter(|text| !text.contains(['"', '\\', '\n', '$']));
    let text = text.with_context(|| format!("ssh cannot be given the path {}", path.display()))?;
    Ok(format!("\"{}\"", text.replace('%', "%%")))
}

/// A path as one word of a command line that `ssh` hands to a shell, with its own `%` doubled.
fn shell_word(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().filter(|text| !text.contains('\n'));
    let text = text.with_context(|| format!("ssh cannot be given the path {}", path.display()))?;
    Ok(format!("'{}'", text.replace('\'', r"'\''")).replace('%', "%%"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::programs;
    use std::collections::BTreeSet;
    use std::process::Command;

    /// Other values than ours, which a user has for all hosts, or asks for behind the name of a VM.
    const OTHERS: [&str; 23] = [
        "ConnectTimeout 5",
        "PreferredAuthentications password,keyboard-interactive",
        "PubkeyAuthentication no",
        "PasswordAuthentication yes",
        "KbdInteractiveAuthentication yes",
        "ChallengeResponseAuthentication yes",
        "HostbasedAuthentication yes",
        "NumberOfPasswordPrompts 5",
        "ProxyJump bastion",
        "ProxyCommand nc %h %p",
        "Port 2222",
        "User bob",
        "StrictHostKeyChecking no",
        "UserKnownHostsFile ~/.ssh/known_hosts",
        "GlobalKnownHostsFile /etc/ssh/known",
        "KnownHostsCommand /bin/true",
        "UpdateHostKeys yes",
        "VerifyHostKeyDNS yes",
        "CheckHostIP yes",
        "IdentitiesOnly no",
        "AddKeysToAgent yes",
        "ForwardAgent yes",
        "ForwardX11 yes",
    ];
    /// What a user may have for all hosts, and asks for behind the name of a VM with reason.
    const FOR_ALL_HOSTS: [&str; 18] = [
        "RemoteCommand tmux attach",
        "RequestTTY force",
        "SessionType none",
        "StdinNull yes",
        "ForkAfterAuthentication yes",
        "HostKeyAlgorithms ssh-rsa",
        "PubkeyAcceptedAlgorithms rsa-sha2-512",
        "Ciphers aes128-cbc",
        "MACs hmac-sha1",
        "KexAlgorithms diffie-hellman-group14-sha256",
        "ProxyUseFdpass yes",
        "HostName %h.example",
        "CanonicalizeHostname always",
        "RevokedHostKeys /nonexistent",
        "NoHostAuthenticationForLocalhost yes",
        "PKCS11Provider /lib/x.so",
        "Tunnel yes",
        "ExitOnForwardFailure yes",
    ];

    const PLACES: (&str, &str) = ("/a b/it's 100%/banger", "/k e/y%");

    /// What `ssh -G`, which prints the settings that would be used, says.
    fn effective(arguments: &[String]) -> Option<BTreeSet<String>> {
        let Ok(ssh) = programs::find("ssh") else {
            eprintln!("skipped: there is no ssh");
            return None;
        };
        let shown = Command::new(ssh).arg("-G").args(arguments).output().unwrap();
        assert!(shown.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&shown.stderr));
        Some(String::from_utf8(shown.stdout).unwrap().lines().map(str::to_owned).collect())
    }

    fn places() -> Places<'static> {
        Places { program: Path::new(PLACES.0), key: Path::new(PLACES.1) }
    }

    /// With what a user has for all hosts below our file.
    fn with(below: &str) -> Option<BTreeSet<String>> {
        let folder = tempfile::tempdir().unwrap();
        let (ours, config) = (folder.path().join("ours"), folder.path().join("config"));
        std::fs::write(&ours, places().fragment().unwrap()).unwrap();
        std::fs::write(&config, format!("Include \"{}\"\nHost *\n{below}", ours.display())).unwrap();
        effective(&["-F".into(), config.display().to_string(), "demo.banger".into()])
    }

    #[test]
    fn no_setting_of_all_hosts_changes_what_a_vm_needs() {
        let Some(plain) = with("") else { return };
        for line in [
            r"proxycommand '/a b/it'\''s 100%/banger' vm proxy -- '%n'",
            r#"knownhostscommand "/a b/it's 100%%/banger" vm host-key -- %n"#,
            "hostname demo.banger",
            "user root",
            "userknownhostsfile /dev/null",
            "stricthostkeychecking true",
            "updatehostkeys false",
            "identitiesonly yes",
            "identityfile /k e/y%",
            "forwardagent no",
            "passwordauthentication no",
            "kbdinteractiveauthentication no",
            "preferredauthentications publickey",
            "requesttty auto",
            "sessiontype default",
        ] {
            let doubled = line.replace("100%/banger' vm", "100%%/banger' vm").replace("/y%", "/y%%");
            assert!(plain.contains(line) || plain.contains(&doubled), "{line} is not in {plain:#?}");
        }
        for below in OTHERS.into_iter().chain(FOR_ALL_HOSTS) {
            let text = below.to_ascii_lowercase();
            let keyword = text.split(' ').next().unwrap();
            assert_eq!(with(&format!("    {below}\n")).unwrap(), plain, "{keyword}");
        }
    }

    /// ssh(1) adds these to what is on its command line, and only `ClearAllForwardings` takes them
    /// back, with those of the command line. So `ssh-config --install` warns of them.
    #[test]
    fn forwardings_of_all_hosts_stay() {
        let Some(shown) = with("    RemoteForward 8080 localhost:80\n") else { return };
        assert!(shown.contains("remoteforward 8080 [localhost]:80"), "{shown:#?}");
    }

    #[test]
    fn the_options_of_vm_ssh_win_over_what_stands_behind_the_vm() {
        let mut arguments = vec!["-F".to_owned(), "none".to_owned()];
        arguments.extend(places().options().unwrap());
        arguments.push("demo.banger".into());
        let Some(plain) = effective(&arguments) else { return };
        for line in [
            "user root",
            "stricthostkeychecking true",
            "userknownhostsfile /dev/null",
            "passwordauthentication no",
            "kbdinteractiveauthentication no",
            "preferredauthentications publickey",
            "forwardagent no",
        ] {
            assert!(plain.contains(line), "{line} is not in {plain:#?}");
        }
        let keyword = |setting: &str| setting.split(' ').next().unwrap().to_ascii_lowercase();
        let ours: BTreeSet<String> = places().settings().unwrap().iter().map(|setting| keyword(setting)).collect();
        let mut tried: BTreeSet<String> = OTHERS.into_iter().map(keyword).collect();
        // Other words for two of ours; and keys beside the one of ours add up.
        assert!(tried.remove("challengeresponseauthentication") && tried.remove("proxyjump"));
        tried.insert("identityfile".to_owned());
        assert_eq!(tried, ours);
        for more in OTHERS {
            let mut arguments = arguments.clone();
            arguments.extend(["-o".into(), more.into()]);
            assert_eq!(effective(&arguments).unwrap(), plain, "{more}");
        }
        // Flags of the user's own do count.
        for flags in [&["-N"][..], &["-s"], &["-f", "-N"], &["-t"], &["-A"], &["-L", "8080:localhost:80"]] {
            let mut arguments = arguments.clone();
            arguments.extend(flags.iter().map(|&flag| flag.to_owned()));
            if flags == ["-s"] {
                arguments.push("sftp".into());
            }
            assert_ne!(effective(&arguments).unwrap(), plain, "{flags:?}");
        }
    }

    #[test]
    fn a_path_that_ssh_would_read_otherwise_is_refused() {
        for bad in ["/a\"b", "/a\nb", "/a\\b", "/${HOME}"] {
            assert!(Places { program: Path::new(bad), key: Path::new("/k") }.fragment().is_err(), "{bad:?}");
        }
    }
}
