//! What a command of `vm exec` does to its caller, to the guest and to the daemon: it outlives the
//! daemon, ends when it ends, hoards no input, and leaves nothing, however many there are.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::suite::guests::Guest;
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "commands",
    about: "commands in guests: the daemon's end, streams that stand still, children that stay, many at once",
    setup: Setup::Guests,
    scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("the-daemons-end-cuts-no-command", outlives),
        Scenario::new("a-command-ends-when-it-ends", ends),
        Scenario::new("streams-that-stand-still-cost-nothing", still),
        Scenario::new("many-leave-nothing", many),
        Scenario::new("a-program-by-mcp", by_mcp),
    ]
}

/// Kills of the daemon under commands that count.
const KILLS: usize = 3;
/// Commands that count meanwhile, when the suite is named and in a sampled run.
const COUNTING: [usize; 2] = [20, 5];

fn outlives(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "count")?;
    let script = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo line $i; sleep 0.1; done; cat; exit 7";
    let line = format!("(sleep 40; echo typed) | banger vm exec -T count -- sh -c '{script}'");
    let [whole, sampled] = COUNTING;
    let commands = if scene.sample().is_some() { sampled } else { whole };
    let counting = scene.step("commands count", |scene| {
        (0..commands).map(|_| scene.start_user("alice", &line)).collect::<Result<Vec<_>>>()
    })?;
    std::thread::sleep(scene.limit(Duration::from_secs(3)));
    scene.step("the daemon is killed under them", |scene| {
        for _ in 0..KILLS {
            scene.root("systemctl kill --kill-whom=main -s KILL bangerd.service")?;
            std::thread::sleep(scene.limit(Duration::from_secs(2)));
            scene.banger("alice", &["vm", "list"])?.ok()?.says("running")?;
        }
        Ok(())
    })?;
    scene.step("and no line is lost, in either direction", |scene| {
        for command in counting {
            let ended = command.wait(scene.limit(Duration::from_secs(200)))?.exits(7)?;
            let lines: Vec<&str> = ended.stdout.lines().collect();
            let expected: Vec<String> = (1..=300).map(|count| format!("line {count}")).collect();
            let counted = lines.get(..300).context("lines are missing")?;
            ensure!(counted == expected && lines.get(300..) == Some(&["typed"]), "{ended}");
        }
        Ok(())
    })?;
    guest.delete(scene)?;
    scene.passed()
}

fn ends(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "ends")?;
    scene.step("although a child of it holds its streams", |scene| {
        let ended = scene.banger("alice", &in_ends(&["sh", "-c", "sleep 300 & echo ok"]))?.ok()?.says("ok")?;
        ensure!(ended.took < scene.limit(Duration::from_secs(10)), "{ended}");
        Ok(())
    })?;
    scene.step("with the status of every way to end", |scene| {
        for (script, status) in [("exit 0", 0), ("exit 255", 255), ("kill -KILL $$", 137), ("kill -SYS $$", 159)] {
            scene.banger("alice", &in_ends(&["sh", "-c", script]))?.exits(status)?;
        }
        scene.banger("alice", &in_ends(&["nonesuch"]))?.exits(127)?;
        scene.banger("alice", &in_ends(&["/etc"]))?.exits(126)?;
        Ok(())
    })?;
    scene.step("with all that it wrote", |scene| {
        let said = scene.banger("alice", &in_ends(&["sh", "-c", "seq 1 20000; echo last"]))?.ok()?;
        ensure!(
            said.stdout.lines().count() == 20_001 && said.stdout.ends_with("last\n"),
            "{} bytes",
            said.stdout.len()
        );
        Ok(())
    })?;
    scene.step("bytes that are no text arrive", |scene| {
        let line = "banger vm exec -n ends -- printf '%s' \"$(printf '\\377\\376')\" | od -An -tx1";
        scene.user("alice", line)?.ok()?.says("ff fe").map(drop)
    })?;
    guest.delete(scene)?;
    scene.passed()
}

fn in_ends<'a>(words: &[&'a str]) -> Vec<&'a str> {
    [&["vm", "exec", "-n", "ends", "--"], words].concat()
}

/// What may come and go in a guest meanwhile, KiB.
const NOISE: u64 = 4 << 10;

fn still(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "still")?;
    let used = |scene: &Scene| -> Result<(u64, u64)> {
        let seen = guest.shell(scene, "df -k /root | tail -n 1; grep MemAvailable /proc/meminfo")?.ok()?;
        let number = |line: usize, word: usize| -> Result<u64> {
            let found = seen.stdout.lines().nth(line).and_then(|line| line.split_whitespace().nth(word));
            found.with_context(|| seen.to_string())?.parse().with_context(|| seen.to_string())
        };
        Ok((number(0, 2)?, number(1, 1)?))
    };
    let (disk, memory) = used(scene)?;
    scene.step("a command that does not read makes the writer wait", |scene| {
        let writing = scene.start_user("alice", "timeout 12 sh -c 'yes | banger vm exec -T still -- sleep 120'")?;
        std::thread::sleep(scene.limit(Duration::from_secs(6)));
        let (disk_then, memory_then) = used(scene)?;
        writing.wait(scene.limit(Duration::from_secs(60)))?.exits(124)?;
        scene.measured("disk of the guest, KiB more", disk_then.saturating_sub(disk));
        scene.measured("memory of the guest, KiB less", memory.saturating_sub(memory_then));
        ensure!(disk_then < disk + NOISE && memory_then + 4 * NOISE > memory, "input is hoarded in the guest");
        Ok(())
    })?;
    scene.step("a reader with a pause gets every byte", |scene| {
        // Emulation moves some MiB a second.
        let bytes = if scene.sample().is_some() { 30 << 20 } else { 300 << 20 };
        let line = format!("banger vm exec -n still -- head -c {bytes} /dev/zero | (sleep 4; wc -c)");
        let reading = scene.start_user("alice", &line)?;
        std::thread::sleep(scene.limit(Duration::from_secs(3)));
        let (_, memory_then) = used(scene)?;
        reading.wait(scene.limit(Duration::from_secs(200)))?.ok()?.says(&bytes.to_string())?;
        ensure!(memory_then + 4 * NOISE > memory, "output is hoarded in the guest");
        Ok(())
    })?;
    guest.delete(scene)?;
    scene.passed()
}

/// Processes that run a program, but for the shell that looks: the kernel's own threads come and
/// go. It has no child when it makes its list.
const OF_PROGRAMS: &str =
    "for process in /proc/[0-9]*; do [ $process = /proc/$$ ] || echo $process $(readlink $process/exe); done";

/// How many descriptors the agent's processes have, with those of the command that looks.
const OPEN_IN_AGENTS: &str = "for process in /proc/[0-9]*; do \
    [ \"$(cat $process/comm 2>/dev/null)\" = banger-agent ] && ls $process/fd | wc -l; done; :";

/// One after the other, when the suite is named and in a sampled run.
const IN_A_ROW: [usize; 2] = [1000, 60];
/// At once.
const AT_ONCE: usize = 50;

fn many(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "many")?;
    let daemon = scene.main_pid("bangerd.service")?;
    let open = |scene: &Scene| -> Result<usize> { Ok(scene.root(&format!("ls /proc/{daemon}/fd"))?.lines().count()) };
    // Whatever is opened once and kept.
    guest.shell(scene, "true")?.ok()?;
    let before = open(scene)?;
    let inside = |scene: &Scene| -> Result<Vec<String>> {
        let seen = guest.shell(scene, OF_PROGRAMS)?.ok()?.stdout;
        Ok(seen.lines().filter(|line| line.split_whitespace().nth(1).is_some()).map(str::to_owned).collect())
    };
    let processes = inside(scene)?;
    let agent = |scene: &Scene| -> Result<String> { Ok(guest.shell(scene, OPEN_IN_AGENTS)?.ok()?.stdout) };
    let opened = agent(scene)?;
    let free = |scene: &Scene| -> Result<u64> {
        let seen = guest.shell(scene, "grep MemAvailable /proc/meminfo")?.ok()?;
        let number = seen.stdout.split_whitespace().nth(1).with_context(|| seen.to_string())?;
        number.parse().with_context(|| seen.to_string())
    };
    let memory = free(scene)?;
    scene.step("in a row", |scene| {
        let [whole, sampled] = IN_A_ROW;
        let mut left = if scene.sample().is_some() { sampled } else { whole };
        // A limit is for one line: some at a time.
        while left > 0 {
            let some = left.min(50);
            let line = format!("for i in $(seq {some}); do banger vm exec -n many -- true || exit 1; done");
            scene.user("alice", &line)?.ok()?;
            left -= some;
        }
        Ok(())
    })?;
    scene.step("at once", |scene| {
        let line = format!(
            "for i in $(seq {AT_ONCE}); do banger vm exec -n many -- sh -c \"sleep 1; exit 3\" & all=\"$all $!\"; done; \
             for i in $all; do wait $i; [ $? = 3 ] || exit 1; done"
        );
        scene.user("alice", &line)?.ok().map(drop)
    })?;
    scene.step("nothing is left, in the daemon or in the guest", |scene| {
        scene
            .wait_until("the daemon's descriptors are what they were", Duration::from_secs(10), || {
                let now = open(scene)?;
                Ok((now > before).then(|| format!("{now}, and {before} before")))
            })
            .map(drop)?;
        scene
            .wait_until("the guest's processes are what they were", Duration::from_secs(10), || {
                let now = inside(scene)?;
                Ok((now != processes).then(|| format!("{now:?}, and {processes:?} before")))
            })
            .map(drop)?;
        scene
            .wait_until("the agent's descriptors are what they were", Duration::from_secs(10), || {
                let now = agent(scene)?;
                Ok((now != opened).then(|| format!("{now}, and {opened} before")))
            })
            .map(drop)?;
        let now = free(scene)?;
        scene.measured("memory of the guest, KiB less", memory.saturating_sub(now));
        ensure!(now + 2 * NOISE > memory, "the guest has {now} KiB left, and {memory} before");
        Ok(())
    })?;
    guest.delete(scene)?;
    scene.passed()
}

/// A coding agent's way (docs/contract.md, `banger mcp`): a VM, a script in it that is run, and its
/// end, as lines of JSON-RPC over one connection.
fn by_mcp(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let about = json!({ "name": "bench", "version": "1" });
    let hello = json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": about });
    let call = |tool: &str, arguments: Value| ("tools/call", json!({ "name": tool, "arguments": arguments }));
    let script = "#!/bin/sh\necho hello $1\nexit 3\n";
    let vm = json!({ "name": "agent", "image": "tiny", "vcpu": 1, "memory": "256M", "root_size": "128M", "disk_size": "64M" });
    let calls = [
        ("initialize", hello),
        call("vm_run", vm),
        call("file_write", json!({ "vm": "agent", "path": "/root/greet", "text": script, "executable": true })),
        call("vm_exec", json!({ "vm": "agent", "command": ["/root/greet", "you"] })),
        call("file_read", json!({ "vm": "agent", "path": "/root/greet" })),
        call("vm_list", json!({})),
        call("vm_delete", json!({ "vm": "agent" })),
    ];
    // The connection stays open while an answer is waited for: who goes has what was begun undone.
    let mut line = "bash <<'END'\ncoproc MCP { banger mcp; }\nto=${MCP[1]}; from=${MCP[0]}\n".to_owned();
    for (id, (method, params)) in calls.iter().enumerate() {
        let asked = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        line.push_str(&format!(
            "printf '%s\\n' '{asked}' >&$to; IFS= read -r answer <&$from; printf '%s\\n' \"$answer\"\n"
        ));
        if id == 0 {
            line.push_str("echo '{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}' >&$to\n");
        }
    }
    line.push_str("END\n");
    let ended = scene.step("seven calls", |scene| {
        scene.start_user("alice", &line)?.wait(scene.limit(Duration::from_secs(90)))?.ok()
    })?;
    let said: Vec<String> = ended
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).with_context(|| format!("no JSON: {line}")))
        .map(|answer: Result<Value>| {
            let answer = answer?;
            let text = answer.pointer("/result/content/0/text").and_then(Value::as_str);
            ensure!(answer.pointer("/result/isError") != Some(&json!(true)), "{answer}");
            Ok(text.unwrap_or_default().to_owned())
        })
        .collect::<Result<_>>()?;
    let [_, ran, written, greeted, read, list, deleted] = said.as_slice() else { anyhow::bail!("{ended}") };
    ensure!(ran.contains("\"agent\"") && !written.is_empty() && !deleted.is_empty(), "{said:?}");
    let greeted: Value = serde_json::from_str(greeted).context("what vm_exec says")?;
    ensure!(greeted["stdout"] == "hello you\n" && greeted["exit_status"] == 3, "{greeted}");
    ensure!(read == script && list.contains("running"), "{said:?}");
    scene.banger("alice", &["vm", "list"])?.ok()?.does_not_say("agent")?;
    scene.passed()
}
