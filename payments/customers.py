"""Who a user is at a provider. A customer is linked to a user once, and never to somebody else's payment."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from payments.tables import provider_customers


@dataclass(frozen=True, slots=True)
class Customer:
    """A user as a provider knows them; `customer_id` None: not yet."""

    user_id: str
    email: str
    customer_id: str | None


async def customer_of(conn: AsyncConnection, provider: str, user_id: str, email: str) -> Customer:
    """Return a user's customer."""
    customer_id = await conn.scalar(
        select(provider_customers.c.customer_id).where(
            provider_customers.c.provider == provider, provider_customers.c.user_id == user_id
        )
    )
    return Customer(user_id, email, customer_id)


async def remember_customer(
    conn: AsyncConnection, provider: str, user_id: str, customer_id: str, instead_of: str | None = None
) -> None:
    """Link a user to a customer; the first link of either stays, unless it is to the one whom this one replaces."""
    if instead_of is not None:
        await conn.execute(
            update(provider_customers)
            .where(
                provider_customers.c.provider == provider,
                provider_customers.c.user_id == user_id,
                provider_customers.c.customer_id == instead_of,
            )
            .values(customer_id=customer_id)
        )
        return
    await conn.execute(
        insert(provider_customers)
        .values(provider=provider, user_id=user_id, customer_id=customer_id)
        .on_conflict_do_nothing()
    )


async def forget_customers(conn: AsyncConnection, user_id: str) -> None:
    """Unlink a user who is forgotten; what the provider keeps of them is asked for there."""
    await conn.execute(delete(provider_customers).where(provider_customers.c.user_id == user_id))
