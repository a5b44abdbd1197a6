"""HTTPS host of photos with a certificate of its own, and misbehaviour by path."""

import datetime
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from archives import photo
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NAME = "photos.example.org"


class _Habits(BaseHTTPRequestHandler):
    """Answers ``/photo.jpg`` well."""

    def do_GET(self) -> None:
        with suppress(OSError):
            match self.path.partition("?")[0]:
                case "/photo.jpg":
                    self._send(photo(1))
                case "/elsewhere":
                    self.send_response(302)
                    self.send_header("Location", f"https://{NAME}/photo.jpg")
                    self.end_headers()
                case "/endless":
                    self.send_response(200)
                    self.end_headers()
                    while True:
                        self.wfile.write(bytes(1 << 16))
                case "/short":
                    self._send(photo(1), length=1_000_000)
                case "/drip":
                    while True:
                        self.wfile.write(b"H")
                        time.sleep(0.05)
                case _:
                    self.send_error(404)

    def _send(self, body: bytes, length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length or len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _certificate(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "host.pem"
    kinds = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(key.private_bytes(*kinds) + certificate.public_bytes(serialization.Encoding.PEM))
    return path


@contextmanager
def tls_host(folder: Path) -> Iterator[tuple[int, ssl.SSLContext]]:
    """Run the host; its port, and what trusts its certificate."""
    certificate = _certificate(folder)
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(certificate)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Habits)
    server.socket = own.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that refuse the certificate
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1], ssl.create_default_context(cafile=certificate)
    finally:
        server.shutdown()
        server.server_close()
