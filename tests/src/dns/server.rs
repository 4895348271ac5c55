//! A DNS server for tests: in a pod's namespace, on port 53 of all its addresses, over both transports.
//!
//! It answers every question for addresses with one of its own choice, but for names that begin with `nope` (which do not exist), with
//! `big` (whose answer does not fit into a datagram) and with `mute` (to which it is silent).

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use api::dns::{Code, Kind, Message, Name, Record};
use sandbox::NetNamespace;

/// How often a thread looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// A question that came.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) name: String,
    pub(super) from: IpAddr,
    pub(super) over_tcp: bool,
}

/// See the module. Ends when it is dropped.
pub(super) struct Server {
    asked: Arc<Mutex<Vec<Asked>>>,
    is_mute: Arc<AtomicBool>,
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Clone)]
struct Answers {
    v4: [u8; 4],
    v6: Ipv6Addr,
    asked: Arc<Mutex<Vec<Asked>>>,
    is_mute: Arc<AtomicBool>,
    ends: Arc<AtomicBool>,
}

impl Server {
    /// Starts one in `net` that answers with 192.0.2.`number` and 2001:db8::`number`, on `address`, or on all of the namespace.
    pub(super) fn start(net: &NetNamespace, number: u8, address: Option<IpAddr>) -> anyhow::Result<Self> {
        let address = SocketAddr::new(address.unwrap_or(Ipv6Addr::UNSPECIFIED.into()), 53);
        let bind = || anyhow::Ok((UdpSocket::bind(address)?, TcpListener::bind(address)?));
        let (datagrams, streams) = net.run(bind)??;
        datagrams.set_read_timeout(Some(LOOK))?;
        streams.set_nonblocking(true)?;
        let (asked, is_mute, ends) = Default::default();
        let answers = Answers {
            v4: [192, 0, 2, number],
            v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()),
            asked,
            is_mute,
            ends,
        };
        let Answers { asked, is_mute, ends, .. } = answers.clone();
        let over_udp = answers.clone();
        let threads = vec![
            std::thread::spawn(move || over_udp.datagrams(&datagrams)),
            std::thread::spawn(move || answers.streams(&streams)),
        ];
        Ok(Self { asked, is_mute, ends, threads })
    }

    /// The questions since the last time.
    pub(super) fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().expect("no thread panics with it"))
    }

    /// Makes it silent, or no longer.
    pub(super) fn mute(&self, is_mute: bool) {
        self.is_mute.store(is_mute, Ordering::SeqCst);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Answers {
    fn datagrams(&self, socket: &UdpSocket) {
        let mut buffer = [0; 4096];
        while !self.ends.load(Ordering::SeqCst) {
            if let Ok((length, from)) = socket.recv_from(&mut buffer)
                && let Some(answer) = self.answer(&buffer[..length], from.ip(), false)
            {
                let _ = socket.send_to(&answer, from);
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "between connections it looks whether it is to end")]
    fn streams(&self, listener: &TcpListener) {
        while !self.ends.load(Ordering::SeqCst) {
            match listener.accept() {
                Ok((stream, from)) => {
                    let _ = self.stream(stream, from.ip());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(LOOK),
                Err(_) => return,
            }
        }
    }

    /// One question a connection.
    fn stream(&self, mut stream: TcpStream, from: IpAddr) -> std::io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut query)?;
        if let Some(answer) = self.answer(&query, from, true) {
            let length = u16::try_from(answer.len()).unwrap_or(0);
            stream.write_all(&[&length.to_be_bytes()[..], &answer].concat())?;
        }
        Ok(())
    }

    fn answer(&self, query: &[u8], from: IpAddr, over_tcp: bool) -> Option<Vec<u8>> {
        let query = Message::decode(query).ok()?;
        let question = query.questions.first()?.clone();
        let name = question.name.to_text()?;
        let asked = Asked { name: name.clone(), from: from.to_canonical(), over_tcp };
        self.asked.lock().expect("no thread panics with it").push(asked);
        if self.is_mute.load(Ordering::SeqCst) || name.starts_with("mute") {
            return None;
        }
        let (id, flags, questions) = (query.id, query.flags, query.questions);
        let mut message = Message { id, flags: flags.answered(Code::OK), questions, ..Message::default() };
        let address = match question.kind {
            Kind::A => Some(IpAddr::from(self.v4)),
            Kind::AAAA => Some(self.v6.into()),
            _ => None,
        };
        if name.starts_with("nope") {
            message.flags = flags.answered(Code::NO_NAME);
            message.authorities.push(Record::authority(Name::ROOT, 60, 60));
        } else if name.starts_with("big") && !over_tcp {
            message.flags = message.flags.truncated();
        } else if let Some(address) = address {
            let count = if name.starts_with("big") { 60 } else { 1 };
            message.answers = vec![Record::address(question.name, 60, address); count];
        }
        Some(message.encode())
    }
}
