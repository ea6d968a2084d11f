//! HTTP/1.1 as Firecracker's `micro_http` speaks it: one request after the other on a kept
//! connection, bodies by `Content-Length` only. Called by `server`; knows nothing of the API behind
//! it.

use std::io::{self, BufRead, Read, Write};

/// Largest request body, Firecracker's `HTTP_MAX_PAYLOAD_SIZE`, in bytes.
const MAX_BODY: usize = 51_200;

/// Longest request line or header line, `micro_http`'s `BUFFER_SIZE`, in bytes.
const MAX_LINE: u64 = 1024;

/// Most header lines of one request: a client that sends more is broken.
const MAX_HEADERS: usize = 64;

/// One request, its path without host and query left as it came.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    /// Empty when there is none, as `micro_http` has it.
    pub(super) body: Vec<u8>,
}

/// What goes back: a status and, but for 204, a JSON document.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) body: Option<String>,
}

/// Why no request could be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    #[error("reading a request: {0}")]
    Io(#[from] io::Error),
    /// The text answered to the client before the connection is closed.
    #[error("{0}")]
    Malformed(&'static str),
}

/// Reads the next request; `None` when the client has closed the connection between two of them.
pub(super) fn read_request(input: &mut impl BufRead) -> Result<Option<Request>, HttpError> {
    let Some(line) = read_line(input)? else { return Ok(None) };
    let mut words = line.split(' ');
    let (Some(method), Some(uri), Some("HTTP/1.0" | "HTTP/1.1"), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(HttpError::Malformed("Invalid request line."));
    };
    if !matches!(method, "GET" | "PUT" | "PATCH" | "DELETE") {
        return Err(HttpError::Malformed("Invalid HTTP Method: Unsupported HTTP method."));
    }
    let (method, path) = (method.to_owned(), absolute_path(uri).to_owned());

    let mut length = 0;
    for _ in 0..MAX_HEADERS {
        let line = read_line(input)?.ok_or(io::Error::from(io::ErrorKind::UnexpectedEof))?;
        if line.is_empty() {
            let mut body = vec![0; length];
            input.read_exact(&mut body)?;
            return Ok(Some(Request { method, path, body }));
        }
        let (name, value) = line.split_once(':').ok_or(HttpError::Malformed("Invalid header."))?;
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().map_err(|_| HttpError::Malformed("Invalid content length."))?;
            if length > MAX_BODY {
                return Err(HttpError::Malformed("Request payload is larger than the limit of 51200."));
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") && value.trim() != "identity" {
            return Err(HttpError::Malformed("Chunked bodies are not supported."));
        }
    }
    Err(HttpError::Malformed("Too many headers."))
}

/// Writes one response with Firecracker's headers.
pub(super) fn write_response(output: &mut impl Write, response: &Response) -> io::Result<()> {
    let mut text = format!("HTTP/1.1 {} \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n", response.status);
    if let Some(body) = &response.body {
        text.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    } else {
        text.push_str("\r\n");
    }
    output.write_all(text.as_bytes())
}

/// `None` at the end of the stream before the first byte.
fn read_line(input: &mut impl BufRead) -> Result<Option<String>, HttpError> {
    let mut line = Vec::new();
    input.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    let line = line.strip_suffix(b"\r\n").ok_or(HttpError::Malformed("Invalid line."))?;
    let line = std::str::from_utf8(line).map_err(|_| HttpError::Malformed("A line is not UTF-8."))?;
    Ok(Some(line.to_owned()))
}

/// The path of `/path` or of `http://host/path`.
fn absolute_path(uri: &str) -> &str {
    match uri.strip_prefix("http://") {
        Some(rest) => rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/"),
        None => uri,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_requests_come_over_one_connection() {
        let mut input: &[u8] = b"PUT /boot-source HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n{}GET http://localhost/version HTTP/1.1\r\n\r\n";
        let first = read_request(&mut input).unwrap().unwrap();
        assert_eq!(
            (first.method.as_str(), first.path.as_str(), first.body.as_slice()),
            ("PUT", "/boot-source", &b"{}"[..])
        );
        let second = read_request(&mut input).unwrap().unwrap();
        assert_eq!((second.path.as_str(), second.body.len()), ("/version", 0));
        assert!(read_request(&mut input).unwrap().is_none());
    }

    #[test]
    fn malformed_and_oversized_requests_are_errors() {
        for text in [
            "GET /\r\n\r\n",
            "GET / HTTP/2\r\n\r\n",
            "POST / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\nhost: x\n\n",
            "PUT / HTTP/1.1\r\nContent-Length: 51201\r\n\r\n",
            "PUT / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "PUT / HTTP/1.1\r\nContent-Length: 5\r\n\r\nabc",
        ] {
            assert!(read_request(&mut text.as_bytes()).is_err(), "{text:?}");
        }
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(2000));
        assert!(read_request(&mut long.as_bytes()).is_err());
    }

    #[test]
    fn responses_look_like_those_of_firecracker() {
        let mut output = Vec::new();
        write_response(&mut output, &Response { status: 204, body: None }).unwrap();
        write_response(&mut output, &Response { status: 400, body: Some("{}".into()) }).unwrap();
        assert_eq!(
            String::from_utf8(output).unwrap(),
            "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n\
             HTTP/1.1 400 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\
             Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
        );
    }
}
