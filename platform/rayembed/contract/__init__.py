"""The contract of texts and vectors: instruction template, tokens, pooling mask and length."""

from rayembed.contract.contract import CONTRACT_FILE, Contract, TokenizedTexts

__all__ = ["CONTRACT_FILE", "Contract", "TokenizedTexts"]
