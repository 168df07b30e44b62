"""What lets callers in, as the files say now: tokens, keys, rights and certificates, read again when they change."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from typing import Any

from cellar_server.config import Config, Settings
from cellar_server.credentials import Certificates
from cellar_server.front.callers import Callers
from cellar_server.front.open_streams import OpenStreams
from cellar_server.runtime.base import StartupError

log = logging.getLogger("cellar_server")


class Access:
    """Reads the files again on SIGHUP (`reload_soon`) and when one of them has changed (`look`, once a second). A file
    that is broken changes nothing: the log says so, and what was there before stays in use.

    settings: where the configuration came from, to be read again; of that the rights alone are taken over. StartupError
    where the files cannot be used.
    """

    def __init__(
        self, config: Config, callers: Callers, streams: OpenStreams, settings: Settings | None = None
    ) -> None:
        self.config = config
        self.callers = callers
        self.certificates = Certificates(config) if config.tls_cert else None
        self._streams = streams
        self._settings = settings
        self._seen = self._looked = self._fingerprint()
        self._reading = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def announce(self) -> None:
        """Says in the log who may call where that is not what one should expect."""
        config = self.config
        if config.is_loopback:
            return
        if self.certificates is None:
            log.warning("listening on %s without TLS: what is sent, tokens too, travels in the clear", config.listen)
        if not self.callers.is_on:
            log.warning("listening on %s without tokens: everybody who reaches it may call", config.listen)

    def add_port(self, server: Any, address: str) -> int:
        """Has a server listen, with TLS where there is a certificate; the port, 0 where it cannot."""
        try:
            if self.certificates is None:
                return server.add_insecure_port(address)
            if server.name == "aio":
                return server.add_secure_port(address, self.certificates.for_grpc())
            return server.add_certificates_port(address, self.certificates.for_native())
        except RuntimeError:
            return 0

    def reload_soon(self) -> None:
        """Reads the files again, whether they have changed or not. On the event loop."""
        task = asyncio.ensure_future(self.reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def look(self) -> None:
        """Reads the files again where one has changed since they were last read, and none since the last look: one that
        is being written may be whole TOML, or a list of tokens, and not what it will be."""
        found = await asyncio.get_running_loop().run_in_executor(None, self._fingerprint)
        if found != self._seen and found == self._looked:
            await self.reload()
        self._looked = found

    async def reload(self) -> None:
        """Reads the files again, and ends the streams of callers who may not go on."""
        async with self._reading:
            try:
                await asyncio.get_running_loop().run_in_executor(None, self._read)
            except Exception:  # whatever a file holds, the server goes on as it was
                log.exception("the files could not be read again")
                return
            ended = await self._streams.check_all()
            if ended:
                log.info("%d streams were ended: their callers may not go on", ended)

    def _read(self) -> None:
        self._seen = self._fingerprint()
        config = self.config
        try:
            if self._settings is not None and self._settings.again is not None:
                config = self._taken_over(self._settings.again().config)
        except StartupError as error:
            log.error("the configuration stays as it was: %s", error)
        for what, read in (
            ("callers and rights", self.callers.reload),
            ("certificates", self.certificates.reload if self.certificates is not None else None),
        ):
            try:
                if read is not None:
                    read(config)
                    log.info("%s were read again", what)
            except StartupError as error:
                log.error("%s stay as they were: %s", what, error)
                continue
            if what == "callers and rights":
                self.config = config

    def _taken_over(self, new: Config) -> Config:
        """The configuration in use with the rights of a new one; what else has changed is for the next start."""
        waiting = [
            each.name
            for each in dataclasses.fields(Config)
            if each.name != "rights" and getattr(new, each.name) != getattr(self.config, each.name)
        ]
        if waiting:
            log.warning("changed and not in use before the next start: %s", ", ".join(waiting))
        return dataclasses.replace(self.config, rights=new.rights)

    def _fingerprint(self) -> tuple[Any, ...]:
        """What changes when one of the files does."""
        config = self.config
        paths = [config.tokens, config.jwks, config.tls_cert, config.tls_key, config.tls_client_ca]
        paths.append(self._settings.path if self._settings is not None else "")
        return tuple(_stamp(path) for path in paths if path)


def _stamp(path: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
