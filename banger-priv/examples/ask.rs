//! Asks a running helper by hand: `ask SOCKET OPERATION [ARGUMENT...]`, as the daemon's user and
//! from the daemon's cgroup. For developers; not installed.
#![allow(clippy::print_stdout, clippy::allow_attributes, reason = "a tool for the terminal")]

use banger_policy::reach::Reach;
use banger_proto::helper::{HelperClient, Holding};
use banger_proto::transport::{self, HELPER_LIMITS};
use banger_proto::wire::Purpose;
use std::error::Error;
use std::time::{Duration, Instant};
use tarpc::context;

fn patient() -> context::Context {
    let mut context = context::current();
    context.deadline = Instant::now() + Duration::from_secs(55);
    context
}

async fn ask(words: &[String]) -> Result<(), Box<dyn Error>> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [socket, operation, rest @ ..] = words.as_slice() else {
        return Err("usage: ask SOCKET OPERATION [ARGUMENT...]".into());
    };
    let mut stream = tokio::net::UnixStream::connect(socket).await?;
    transport::connect(&mut stream, Purpose::Calls).await?;
    let client = HelperClient::new(tarpc::client::Config::default(), transport::client(stream, HELPER_LIMITS));
    tokio::task::spawn_local(client.dispatch);
    let helper = client.client;
    let held = async |vm| -> Result<Holding, Box<dyn Error>> { Ok(helper.identity(patient(), vm).await??) };
    match (*operation, rest) {
        ("list", []) => println!("{:#?}", helper.list(patient(), None).await??),
        ("acquire-tap", [vm, owner, index]) => {
            println!("{:?}", helper.acquire_tap(patient(), vm.parse()?, owner.parse()?, index.parse()?).await??);
        }
        ("create-disk", [vm, owner, image, bytes]) => {
            let made =
                helper.create_disk(patient(), vm.parse()?, owner.parse()?, image.parse()?, bytes.parse()?).await??;
            println!("{made:?}");
        }
        ("grow-disk", [vm, owner, bytes]) => {
            println!("{:?}", helper.grow_disk(patient(), vm.parse()?, owner.parse()?, bytes.parse()?).await??);
        }
        ("attach-disk", [vm, owner]) => {
            println!("{:?}", helper.attach_disk(patient(), vm.parse()?, owner.parse()?).await??);
        }
        ("bind-process", [vm, pid]) => helper.bind_process(patient(), vm.parse()?, pid.parse()?).await??,
        ("process-running", [vm, pid]) => {
            println!("{:?}", helper.process_running(patient(), vm.parse()?, pid.parse()?).await??);
        }
        ("set-network", [vm, mode]) => helper.set_network(patient(), vm.parse()?, Reach::of(mode.parse()?)).await??,
        ("identity", [vm]) => println!("{:#?}", held(vm.parse()?).await?),
        ("release-tap", [vm]) => {
            let tap = held(vm.parse()?).await?.tap.ok_or("no tap")?;
            helper.release_tap(patient(), vm.parse()?, tap).await??;
        }
        ("detach-disk", [vm]) => {
            let disk = held(vm.parse()?).await?.disk.ok_or("no disk")?;
            helper.detach_disk(patient(), vm.parse()?, disk).await??;
        }
        ("release", [vm]) => helper.release(patient(), vm.parse()?).await??,
        ("discard-disk", [vm]) => helper.discard_disk(patient(), vm.parse()?).await??,
        _ => return Err("unknown operation".into()),
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, ask(&words))
}
