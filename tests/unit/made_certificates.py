"""A private certificate authority for tests, by ``openssl``, whose certificates may be expired or for other hosts."""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path

_CONFIGURATION = """
[ca]
default_ca = here
[here]
database = {folder}/index.txt
serial = {folder}/serial
new_certs_dir = {folder}
certificate = {folder}/ca.pem
private_key = {folder}/ca.key
default_md = sha256
unique_subject = no
policy = any
copy_extensions = copy
[any]
commonName = optional
"""
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
DAY = datetime.timedelta(days=1)


class Authority:
    """An authority whose files are in a folder.

    Args:
        folder: An empty folder.
        name: Its common name.

    Attributes:
        certificate: Its PEM file.
    """

    def __init__(self, folder: Path, name: str = "private-ca") -> None:
        self._folder = folder
        self.certificate = folder / "ca.pem"
        (folder / "index.txt").write_text("")
        (folder / "serial").write_text("01\n")
        (folder / "openssl.cnf").write_text(_CONFIGURATION.format(folder=folder))
        usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
        self._openssl("req", "-x509", *_KEY, "-days", "2", "-subj", f"/CN={name}", *usage, "-keyout", "ca.key",
                      "-out", "ca.pem")  # fmt: skip

    def issue(
        self, *hosts: str, since: datetime.timedelta = -DAY, until: datetime.timedelta = DAY, name: str = "leaf"
    ) -> Path:
        """A PEM file with key and certificate for host names or addresses, valid from and to offsets from now."""
        now = datetime.datetime.now(datetime.UTC)
        start, end = (f"{now + offset:%Y%m%d%H%M%S}Z" for offset in (since, until))
        names = ",".join(f"{'IP' if host.replace('.', '').isdigit() else 'DNS'}:{host}" for host in hosts)
        key, request, certificate = f"{name}.key", f"{name}.csr", f"{name}.crt"
        self._openssl("req", "-new", *_KEY, "-subj", f"/CN={hosts[0]}", "-addext", f"subjectAltName={names}",
                      "-keyout", key, "-out", request)  # fmt: skip
        self._openssl("ca", "-config", "openssl.cnf", "-batch", "-notext", "-startdate", start, "-enddate", end,
                      "-in", request, "-out", certificate)  # fmt: skip
        pem = self._folder / f"{name}.pem"
        pem.write_text((self._folder / certificate).read_text() + (self._folder / key).read_text())
        return pem

    def issue_authority(
        self, folder: Path, name: str, since: datetime.timedelta = -DAY, until: datetime.timedelta = DAY
    ) -> Authority:
        """An authority whose own certificate this one signs; its files are in an empty folder."""
        subordinate = Authority(folder, name)
        usage = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
        request, key = folder / "ca.csr", folder / "ca.key"
        self._openssl("req", "-new", "-key", str(key), "-subj", f"/CN={name}", *usage, "-out", str(request))
        now = datetime.datetime.now(datetime.UTC)
        start, end = (f"{now + offset:%Y%m%d%H%M%S}Z" for offset in (since, until))
        self._openssl("ca", "-config", "openssl.cnf", "-batch", "-notext", "-startdate", start, "-enddate", end,
                      "-in", str(request), "-out", str(subordinate.certificate))  # fmt: skip
        return subordinate

    def _openssl(self, *arguments: str) -> None:
        done = subprocess.run(["openssl", *arguments], cwd=self._folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
