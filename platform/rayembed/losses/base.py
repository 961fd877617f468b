"""What every loss has in common: the base of its settings, and what it is computed from.

Shapes: Q queries of this rank, B queries and K documents of all ranks, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from rayembed.common.settings import Frozen
from rayembed.contract.vectors import cut

StageKind = Literal["contrastive", "simcse", "mntp"]
Temperature = Annotated[float, Field(gt=0, description="divisor of the cosine")]


@dataclass(frozen=True)
class LossInputs:
    """Vectors of one step and what is known of its rows. Vectors are fp32 and of length 1.

    Three rows as an example: q0 with positive d0, q1 with positive d1 and hard negative d2, q2 with positive
    d2 and hard negative d1, whose source has no in-batch negatives::

            target_Q   allowed_QK   competing_QB
                       d0 d1 d2     q0 q1 q2
        q0  0          1  1  1      0  1  0       d0 against all documents
        q1  1          1  1  1      1  0  0
        q2  2          0  1  1      0  0  0       d2 against its own negative; no rival for other rows either

    Attributes:
        query_QD: this rank's queries.
        document_KD: documents of all ranks, with gradient.
        target_Q: position of each query's positive among the K documents.
        allowed_QK: True at the target and at every negative of a query; see `data.collate.candidate_mask`.
        competing_QB: True where a query of the batch is a negative for this rank's query or for its positive.
        all_queries_BD: queries of all ranks, with gradient; None unless a loss `sees_other_queries`.
        teacher_QK: a teacher's scores of documents, NaN where it gave none; None without any.
        teacher_query_QD: a teacher's vectors of the queries; None without a teacher.
        teacher_document_KD: a teacher's vectors of the documents; None without a teacher.
        projected_query_QD: the queries in the space of a teacher of another width; None: `query_QD`.
        projected_document_KD: the documents there; None: `document_KD`.
        state_query_Q: distance of each query's hidden states from a teacher's; None: none are compared.
        state_document_K: the same of the documents.
    """

    query_QD: torch.Tensor
    document_KD: torch.Tensor
    target_Q: torch.Tensor
    allowed_QK: torch.Tensor
    competing_QB: torch.Tensor
    all_queries_BD: torch.Tensor | None = None
    teacher_QK: torch.Tensor | None = None
    teacher_query_QD: torch.Tensor | None = None
    teacher_document_KD: torch.Tensor | None = None
    projected_query_QD: torch.Tensor | None = None
    projected_document_KD: torch.Tensor | None = None
    state_query_Q: torch.Tensor | None = None
    state_document_K: torch.Tensor | None = None

    def split(self, teacher: int, matches_states: bool) -> "LossInputs":
        """Vectors and what follows each of them, see `TaughtModel`.

        Args:
            teacher: width of a teacher's vectors; 0 without any.
            matches_states: a distance of states comes last.
        """
        query_QD, document_KD, end = self.query_QD, self.document_KD, self.query_QD.shape[1] - matches_states
        inputs, width = self, end - teacher if 0 < teacher < end else end
        if width == query_QD.shape[1]:
            return self
        if matches_states:
            inputs = replace(inputs, state_query_Q=query_QD[:, -1], state_document_K=document_KD[:, -1])
        if width < end:
            inputs = replace(
                inputs,
                projected_query_QD=query_QD[:, width:end],
                projected_document_KD=document_KD[:, width:end],
            )
        return inputs.changed(lambda vectors_ND: vectors_ND[:, :width])

    def cut(self, dimensions: int) -> "LossInputs":
        """The same with vectors cut to their first dimensions."""
        return self.changed(lambda vectors_ND: cut(vectors_ND, dimensions))

    def changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "LossInputs":
        """The same with the student's vectors changed; a teacher's and those projected to it stay whole."""
        queries_BD = self.all_queries_BD
        return replace(
            self,
            query_QD=change(self.query_QD),
            document_KD=change(self.document_KD),
            all_queries_BD=None if queries_BD is None else change(queries_BD),
        )


class LossSettings(Frozen):
    """Base of a loss. A subclass adds `type`, the name in a recipe, its settings and `rows`.

    Attributes:
        kind: the kind of stage that can minimise it.
        needs_full_width: whether vectors cut to fewer dimensions mean nothing to it.
        of_vectors: whether cutting and rounding vectors changes it.
    """

    kind: ClassVar[StageKind] = "contrastive"
    needs_full_width: ClassVar[bool] = False
    of_vectors: ClassVar[bool] = True

    type: str
    weight: float = Field(1.0, gt=0, description="factor in the sum of the stage's losses")

    @property
    def sees_other_queries(self) -> bool:
        """Whether vectors of other workers' queries are needed."""
        return False

    def rows(self, inputs: LossInputs) -> torch.Tensor:
        """Loss of each of this rank's rows (Q), without the weight."""
        raise NotImplementedError(
            f"{self.type} is no loss of vectors; a stage of kind {self.kind} has a step of its own"
        )
