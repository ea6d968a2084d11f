//! Stock clients above SSH, in a Debian guest as alice: OpenSSH with all its forwardings, scp,
//! sftp, rsync, git, editors over SSH, and settings that a user has for all hosts.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use crate::inventory::{Allow, Kind};
use crate::suite::command::Finished;
use crate::suite::guests::Guest;
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "clients",
    about: "OpenSSH, scp, sftp, rsync, git and editors reach a guest by its name",
    setup: Setup::Guests,
    scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("by-its-name-alone", by_name)]
}

/// What a developer's image has beyond Debian's minimum: the host VM's own programs, which are of
/// the same release, with the libraries that they name.
const TOOLS: &str = "set -e; cd /home/alice; cp /srv/bench/debian.tar kit.tar; \
    programs='/usr/bin/git /usr/bin/git-upload-pack /usr/bin/git-receive-pack /usr/bin/rsync /usr/bin/busybox \
    /usr/bin/socat /usr/bin/ssh-add /usr/bin/scp /usr/lib/openssh/sftp-server /usr/bin/kmod'; \
    for program in $programs; do echo $program; ldd $program 2>/dev/null | grep -o '/lib[^ ]*' || :; done | \
    sed 's#^/lib#/usr/lib#; s#^/usr/lib64/#/usr/lib64/#' | sort -u > kit.list; \
    tar --append --file kit.tar --dereference --absolute-names --transform 's#^/#./#' --files-from kit.list; \
    mkdir --parents kit/usr/sbin; ln -s ../bin/kmod kit/usr/sbin/modprobe; tar --append --file kit.tar -C kit ./usr/sbin/modprobe; \
    chown alice:alice kit.tar; rm -r kit.list kit";

/// Files of alice's that each VM of hers is to have, one of which is not there.
const SYNCED: &str = "cp --archive /etc/banger/banger.toml /run/bench-clients.toml; \
    printf '[[file_sync]]\\nhost = \"~/.kitrc\"\\nguest = \"/root/.kitrc\"\\nmode = \"0640\"\\n\
[[file_sync]]\\nhost = \"~/.kit.d\"\\nguest = \"/root/.kit.d\"\\n\
[[file_sync]]\\nhost = \"~/.nowhere\"\\nguest = \"/root/.nowhere\"\\n' >> /etc/banger/banger.toml; systemctl reload bangerd";
const NOT_SYNCED: &str = "mv /run/bench-clients.toml /etc/banger/banger.toml; systemctl reload bangerd; \
    rm -rf /home/alice/.kitrc /home/alice/.kit.d";

/// `Host *` of users who did not think of VMs, one line at a time and all of them at once.
const FOR_ALL_HOSTS: &[&str] = &[
    "RemoteCommand echo another",
    "RequestTTY force",
    "PreferredAuthentications password",
    "PubkeyAuthentication no",
    "HostKeyAlgorithms ecdsa-sha2-nistp256",
    "RemoteForward 2222 localhost:22",
    "LocalForward 2223 localhost:22",
    "SessionType none",
    "Ciphers aes128-cbc",
    "KexAlgorithms diffie-hellman-group14-sha256",
    "MACs hmac-sha1",
    "ProxyCommand false",
    "User bob",
    "StrictHostKeyChecking yes",
    "UserKnownHostsFile /dev/null",
    "StdinNull yes",
    "BatchMode no",
    "SendEnv *",
    "ForwardAgent yes",
    "IdentityFile /nonexistent",
    "ControlPath /nonexistent/%C",
    "ControlMaster auto",
    "HostKeyAlias another",
    "PermitLocalCommand yes",
    "LocalCommand echo another >&2",
];

fn by_name(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    scene.allow(Allow::anything(Kind::File, "/home/alice/.local*", "alice's SSH key for her VMs is made once"));
    scene.allow(Allow::anything(Kind::File, "/home/bob/.local*", "and bob's, who tries to get in"));
    scene.allow(Allow::anything(Kind::File, "/home/alice/.ssh*", "ssh-config makes the folder of alice's ssh"));
    scene.step("a Debian guest with a developer's tools", |scene| {
        scene.root(TOOLS)?;
        let import = ["image", "import", "/home/alice/kit.tar", "--name", "kit", "--size", "1G"];
        scene.banger_long("alice", &import)?.ok()?;
        let run = ["vm", "run", "--detach", "--name", "kit", "--image", "kit", "--vcpu", "1", "--memory", "512M"];
        let run = [&run[..], &["--root-size", "1G", "--disk-size", "256M"]].concat();
        scene.user("alice", "echo set > ~/.kitrc; mkdir ~/.kit.d; echo below > ~/.kit.d/file")?.ok()?;
        scene.root(SYNCED)?;
        let started = scene.banger_long("alice", &run);
        scene.root(NOT_SYNCED)?;
        let started = started?.ok()?;
        ensure!(started.stderr.contains(".nowhere"), "nothing is said of a file that is not there: {started}");
        Ok(())
    })?;
    let guest = Guest::known(scene, "alice", "kit")?;
    scene.step("it has the files that each of her VMs is to have", |scene| {
        guest
            .shell(scene, "cd; cat .kitrc .kit.d/file; stat -c '%a %U' .kitrc .kit.d .kit.d/file")?
            .ok()?
            .says("set\nbelow\n640 root\n755 root\n600 root\n")
            .map(drop)
    })?;
    scene.step("it loads modules of its kernel", |scene| {
        guest.shell(scene, "for name in overlay nf_tables tun fuse; do modprobe $name || exit 1; done; cat /proc/filesystems; ls /dev/net/tun")?
            .ok()?.says("\toverlay")?.says("\tfuse\n").map(drop)
    })?;
    alice(
        scene,
        "mkdir -p ~/desk && banger ssh-config --install && cd ~/desk && head -c 3000000 /dev/urandom > 'a b'",
    )?
    .ok()?;
    files(scene)?;
    repository(scene, &guest)?;
    forwardings(scene, &guest)?;
    agent(scene)?;
    editor(scene)?;
    refused(scene)?;
    whatever_for_all_hosts(scene)?;
    alice(scene, "banger ssh-config --uninstall && rm -rf ~/desk ~/kit.tar ~/.ssh/config")?.ok()?;
    guest.delete(scene)?;
    scene.banger("alice", &["image", "delete", "kit"])?.ok()?;
    scene.passed()
}

/// A line of alice's shell, in the time of some logins under emulation.
fn alice(scene: &Scene, line: &str) -> Result<Finished> {
    scene.start_user("alice", line)?.wait(scene.limit(Duration::from_secs(40)))
}

fn files(scene: &mut Scene) -> Result<()> {
    scene.step("scp both ways, by sftp and by the older protocol", |scene| {
        for flag in ["", "-O"] {
            let line = format!(
                "cd ~/desk && scp -q {flag} 'a b' kit.banger:/root/ && scp -q {flag} \"kit.banger:/root/a\\ b\" back \
                 && cmp 'a b' back && rm back && ssh kit.banger \"rm '/root/a b'\" < /dev/null"
            );
            // By sftp a name is not a word of a shell.
            let line = if flag.is_empty() { line.replace("a\\ b", "a b") } else { line };
            alice(scene, &line)?.ok()?;
        }
        Ok(())
    })?;
    scene.step("sftp with a list of orders", |scene| {
        let orders = "put \"a b\" /root/sent\nls -l /root\nget /root/sent came\nrm /root/sent\nbye\n";
        alice(scene, &format!("cd ~/desk && printf '{orders}' | sftp -q -b - kit.banger && cmp 'a b' came && rm came"))?
            .ok()
            .map(drop)
    })?;
    scene.step("rsync both ways, and again with what has changed", |scene| {
        let line = "cd ~/desk && mkdir -p tree/sub && cp 'a b' tree/sub && ln -s sub/nowhere tree/link && chmod 600 'tree/sub/a b' \
            && rsync -a -e ssh tree/ kit.banger:/root/tree/ && rsync -a kit.banger:/root/tree/ back/ && diff -r --no-dereference tree back \
            && echo more > tree/more && rm 'tree/sub/a b' && rsync -a --delete tree/ kit.banger:/root/tree/ \
            && rsync -a --delete kit.banger:/root/tree/ back/ && diff -r --no-dereference tree back && rm -rf tree back";
        alice(scene, line)?.ok().map(drop)
    })
}

fn repository(scene: &mut Scene, guest: &Guest) -> Result<()> {
    scene.step("git clone, push and fetch", |scene| {
        guest.shell(scene, "git init -q --bare -b main /root/repo.git")?.ok()?;
        let identity = "-c user.name=alice -c user.email=alice@localhost";
        let line = format!(
            "cd ~/desk && git clone -q ssh://kit.banger/root/repo.git one && cd one && git checkout -q -b main && cp '../a b' . \
             && git add . && git {identity} commit -q -m first && git push -q origin main && cd .. \
             && git clone -q kit.banger:/root/repo.git two && cmp 'a b' 'two/a b' && rm -rf one two"
        );
        alice(scene, &line)?.ok().map(drop)
    })
}

fn forwardings(scene: &mut Scene, guest: &Guest) -> Result<()> {
    guest
        .shell(
            scene,
            "mkdir /www && echo from the guest > /www/page && busybox httpd -p 127.0.0.1:8080 -h /www && \
             (socat UNIX-LISTEN:/run/served,fork EXEC:'echo by a socket' </dev/null >/dev/null 2>&1 &)",
        )?
        .ok()?;
    scene.step("-L, -R and -D over one connection, which others share", |scene| {
        let server = scene.start_user("alice", "exec socat TCP-LISTEN:18081,bind=127.0.0.1,fork,reuseaddr EXEC:'echo from the host'")?;
        let open = "cd ~/desk && ssh -M -S ctl -N -f -o ExitOnForwardFailure=yes -L 18080:127.0.0.1:8080 -L $PWD/served:/run/served \
            -R 19090:127.0.0.1:18081 -D 11080 kit.banger < /dev/null > /dev/null 2>&1";
        let used = alice(scene, open)?.ok().and_then(|_| {
            alice(scene, "curl -sS http://127.0.0.1:18080/page")?.ok()?.says("from the guest")?;
            alice(scene, "curl -sS --socks5-hostname 127.0.0.1:11080 http://localhost:8080/page")?
                .ok()?
                .says("from the guest")?;
            alice(scene, "socat -u UNIX-CONNECT:$HOME/desk/served -")?.ok()?.says("by a socket")?;
            guest.shell(scene, "socat -u TCP:127.0.0.1:19090 -")?.ok()?.says("from the host")?;
            alice(scene, "cd ~/desk && ssh -S ctl -O check kit.banger && ssh -S ctl kit.banger 'exit 7'")?.exits(7)?;
            alice(scene, "cd ~/desk && ssh -S ctl -O forward -L 18082:127.0.0.1:8080 kit.banger && curl -sS http://127.0.0.1:18082/page")?
                .ok()?
                .says("from the guest")
        });
        let ended = alice(scene, "cd ~/desk && ssh -S ctl -O exit kit.banger; rm -f served");
        server.signal(Signal::SIGTERM)?;
        server.wait(scene.limit(Duration::from_secs(10)))?;
        used?;
        ended?.ok()?;
        guest.shell(scene, "socat -u TCP:127.0.0.1:19090 -")?.refused(&["refused"]).map(drop)
    })
}

fn agent(scene: &mut Scene) -> Result<()> {
    scene.step("alice's agent comes along when she says so, and not otherwise", |scene| {
        let line = "cd ~/desk && ssh-keygen -q -t ed25519 -N '' -C mine -f key && eval $(ssh-agent) > /dev/null && ssh-add -q key && \
            ssh kit.banger 'echo [$SSH_AUTH_SOCK]' < /dev/null; ssh -A kit.banger 'ssh-add -l' < /dev/null; \
            kill $SSH_AGENT_PID; rm -f key key.pub";
        alice(scene, line)?.ok()?.says("[]\n")?.says("mine (ED25519)").map(drop)
    })
}

/// One connection with a script on its input and a port for what it starts, which may be lost and
/// is then made again: as the remote extensions of editors do.
fn editor(scene: &mut Scene) -> Result<()> {
    scene.step("an editor's server is brought, started, reached, lost and found again", |scene| {
        alice(scene, "cd ~/desk && mkdir server && echo 'an editor is served' > server/page && tar cf server.tar server")?
            .ok()?;
        let probe = "ssh -T -o ConnectTimeout=15 kit.banger bash <<'END'\nset -e; uname -sm; test -w \"$HOME\"; \
            command -v tar >/dev/null; mkdir -p ~/.editor; echo probe:done\nEND";
        alice(scene, probe)?.ok()?.says("Linux x86_64")?.says("probe:done")?;
        alice(scene, "cd ~/desk && ssh -T kit.banger 'tar -x -C ~/.editor' < server.tar")?.ok()?;
        let start = "ssh -T kit.banger bash <<'END'\ncd ~/.editor/server; busybox httpd -p 127.0.0.1:8090 -h .; echo listening:8090\nEND";
        alice(scene, start)?.ok()?.says("listening:8090")?;
        for _ in 0..2 {
            let line = "cd ~/desk; ssh -T -D 21080 -o ExitOnForwardFailure=yes kit.banger 'echo up; exec sleep 600' > up & lost=$!; \
                until test -s up; do sleep 0.2; done; \
                curl -sS --socks5-hostname 127.0.0.1:21080 http://127.0.0.1:8090/page; status=$?; kill -9 $lost; rm up; exit $status";
            alice(scene, line)?.ok()?.says("an editor is served")?;
        }
        Ok(())
    })
}

fn refused(scene: &mut Scene) -> Result<()> {
    scene.step("nobody is asked for a password, and nobody but root comes in", |scene| {
        for flags in ["-o PreferredAuthentications=password,keyboard-interactive", "-l nobody"] {
            let line = format!("ssh {flags} kit.banger true < /dev/null");
            let said = alice(scene, &line)?.exits(255)?;
            ensure!(said.stderr.contains("Permission denied (publickey)"), "{said}");
        }
        // Somebody else has neither the key nor the way.
        scene.user("bob", "ssh -o BatchMode=yes kit.banger true < /dev/null")?.exits(255)?;
        scene.banger_long("bob", &["vm", "ssh", "kit", "--", "true"])?.refused(&["kit"]).map(drop)
    })
}

fn whatever_for_all_hosts(scene: &mut Scene) -> Result<()> {
    scene.step("vm ssh works whatever stands below Host *", |scene| {
        let all = FOR_ALL_HOSTS.join("\n ");
        for lines in FOR_ALL_HOSTS.iter().copied().chain([all.as_str()]) {
            let write = format!("cat > ~/.ssh/config <<'END'\nHost *\n {lines}\nEND\n");
            let said = alice(scene, &format!("{write}banger vm ssh kit -- 'echo reached; exit 7' < /dev/null"))?;
            let right = said.status.code() == Some(7) && said.stdout.trim() == "reached";
            ensure!(right, "with `{lines}`: {said}");
        }
        Ok(())
    })
}
