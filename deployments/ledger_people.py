"""Who people are: sign-in, sessions, what is known of them, deletion; and the mails they get. Part of the Ledger."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from gateway import erasure, sign_in
from gateway.ports import DeleteAccount, SignedIn, VerifySignIn
from gateway.sign_in import SignInTerms
from kit import outbox
from kit.errors import AppError
from kit.outbox import Mail
from kit.settings import Settings
from ledger import keys, scopes
from ledger import sessions as ledger_sessions
from ledger.keys import Credential
from ledger.sessions import Session
from payments import purchases as sales
from payments.purchases import Purchase

P = ParamSpec("P")
T = TypeVar("T")


class LedgerPeople:
    """The use cases of `LedgerServer` around one person."""

    _settings: Settings
    _run: Callable[..., Awaitable[Any]]

    async def start_sign_in(self, email: str, network: str | None) -> None:
        """Write a code and its mail, or neither."""
        await self._run("start_sign_in", sign_in.start, self._sign_in_terms, email, network)

    async def verify_sign_in(self, command: VerifySignIn) -> SignedIn:
        """Redeem a code; a wrong one is counted."""
        outcome: SignedIn | AppError = await self._run(
            "verify_sign_in", sign_in.verify, self._sign_in_terms, command
        )
        if isinstance(outcome, AppError):
            raise outcome
        return outcome

    async def sign_out(self, credential: Credential) -> None:
        """End a session."""
        await self._run("sign_out", ledger_sessions.close_session, credential.hash)

    async def sign_out_everywhere(self, credential: Credential) -> int:
        """End all of the caller's sessions."""
        return await self._as_caller("sign_out_everywhere", credential, ledger_sessions.close_all)

    async def sessions(self, credential: Credential) -> list[Session]:
        """Return the caller's sessions."""
        return await self._as_caller("sessions", credential, ledger_sessions.list_sessions)

    async def purchases(self, credential: Credential, limit: int, before: str | None) -> list[Purchase]:
        """Return a page of the caller's purchases."""
        return await self._as_caller("purchases", credential, sales.list_purchases, limit, before)

    async def delete_account(self, command: DeleteAccount) -> list[str]:
        """Forget the caller, or change nothing."""

        async def delete(conn: AsyncConnection) -> list[str]:
            caller = await keys.caller_of(conn, command.credential, scopes.ANY)
            return await erasure.delete_account(conn, caller, command.email, forfeit=command.forfeit)

        left: list[str] = await self._run("delete_account", delete)
        return left

    # -- the runner's calls ------------------------------------------------------------------------------------

    async def take_mails(self, limit: int) -> list[Mail]:
        """Take mails that are due."""
        taken: list[Mail] = await self._run("take_mails", outbox.take_due, limit)
        return taken

    async def finish_mail(self, mail_id: int, problem: str | None) -> None:
        """Note that a mail was sent, or what kept it."""
        await self._run("finish_mail", outbox.finish, mail_id, problem)

    # -- inside ------------------------------------------------------------------------------------------------

    @property
    def _sign_in_terms(self) -> SignInTerms:
        settings = self._settings
        return SignInTerms(
            settings.secret.get_secret_value().encode(), settings.base_url, settings.sign_in_codes_per_hour
        )

    async def _as_caller(
        self,
        method: str,
        credential: Credential,
        work: Callable[Concatenate[AsyncConnection, str, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        async def as_caller(conn: AsyncConnection) -> T:
            caller = await keys.caller_of(conn, credential, scopes.ANY)
            caller.require_full()
            return await work(conn, caller.user_id, *args, **kwargs)

        answer: T = await self._run(method, as_caller)
        return answer
