"""The models on offer, as OpenAI's clients list them."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from gateway.bodies import StrictRoute
from gateway.deps import SECURED, CallerKey, PartsOf
from gateway.openai_answers import OpenAIModel, OpenAIModels
from gateway.openai_errors import ModelNotFound
from gateway.openai_models import models_of, shown, tasks_named
from gateway.openapi import OPENAI, READ, problems
from gateway.responses import json_response
from ledger import scopes

router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"], route_class=StrictRoute)


@router.get(
    "/models",
    operation_id="listModels",
    summary="List the models on offer",
    response_model=OpenAIModels,
    responses=problems(*READ, shape=OPENAI),
    openapi_extra=SECURED,
)
async def list_models(credential: CallerKey, parts: PartsOf) -> Response:
    """Every model with its tasks, their prices, and whether they can be done now."""
    await parts.ledger.whoami(credential, scopes.ANY)
    catalog, states = await parts.price_list(), await parts.model_states()
    data = [shown(name, tasks, states) for name, tasks in models_of(catalog).items()]
    return json_response({"object": "list", "data": data})


@router.get(
    "/models/{model}",
    operation_id="getModel",
    summary="Get a model on offer",
    response_model=OpenAIModel,
    responses=problems(*READ, ModelNotFound("dall-e-9", ["qwen-image"]), shape=OPENAI),
    openapi_extra=SECURED,
)
async def get_model(model: str, credential: CallerKey, parts: PartsOf) -> Response:
    """One model; the name of a task shows whatever model does it now."""
    await parts.ledger.whoami(credential, scopes.ANY)
    tasks = tasks_named(await parts.price_list(), model)
    return json_response(shown(model, tasks, await parts.model_states()))
