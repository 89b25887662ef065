"""The KVFlow metadata of a request, taken from SGLang's ``custom_params``."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from pydantic import ValidationError

from kvflow.protocol import CUSTOM_PARAMS_KEY, STEPS_PARAMS_KEY, RequestMetadata

__all__ = ["parse_metadata"]

logger = logging.getLogger(__name__)


def parse_metadata(custom_params: object) -> RequestMetadata | None:
    """Metadata of a request, or None where it has none or what it has cannot be used.

    Hints are advisory: malformed ones are logged at debug level and otherwise ignored.
    SGLang lets ``custom_params`` hold one level of scalars only (0.5.23,
    ``sampling/sampling_params.py``), so in-band steps come under a key of their own.
    """
    if not isinstance(custom_params, Mapping):
        return None
    fields = custom_params.get(CUSTOM_PARAMS_KEY)
    if not isinstance(fields, Mapping):
        return None
    steps = custom_params.get(STEPS_PARAMS_KEY)
    if isinstance(steps, Mapping):
        fields = {**fields, "steps_to_execution": steps}
    try:
        return RequestMetadata.model_validate(fields)
    except ValidationError as error:
        logger.debug("KVFlow: request metadata ignored: %s", error)
        return None
