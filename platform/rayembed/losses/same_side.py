"""More negatives for InfoNCE: other queries for the query, other documents for its positive.

Shapes: Q queries of this rank, B queries and K documents of the whole batch, D width.
Source: arXiv 2308.03281 (GTE), section 3.3, the partition function of the improved contrastive loss.
"""

import torch

from rayembed.losses.infonce import Candidates


def query_to_query(
    query_QD: torch.Tensor, all_queries_BD: torch.Tensor, competing_QB: torch.Tensor
) -> Candidates:
    """Other queries as negatives of each query.

    Args:
        query_QD: unit vectors of this rank's queries.
        all_queries_BD: unit vectors of the queries of all ranks.
        competing_QB: True where the queries have no known positive in common; False for the query itself.
    """
    return query_QD @ all_queries_BD.T, competing_QB


def document_to_document(
    document_KD: torch.Tensor, target_Q: torch.Tensor, allowed_QK: torch.Tensor
) -> Candidates:
    """The documents that compete with a query's positive as negatives of that positive.

    Args:
        document_KD: unit vectors of all documents.
        target_Q: position of each query's positive.
        allowed_QK: True at the target and at the query's negatives; see `candidate_mask`.
    """
    return document_KD[target_Q] @ document_KD.T, allowed_QK.scatter(1, target_Q.unsqueeze(1), False)
