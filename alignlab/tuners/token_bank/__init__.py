"""A token bank (TPT): vectors of a bank that match a text best, and a task prompt, in front of what the encoder reads."""

from alignlab.tuners.peft_tuner import register
from alignlab.tuners.token_bank.layer import TokenBank, TokenBankConfig, TokenBankEmbedding
from alignlab.tuners.token_bank.tuner import TokenBankModel, TokenBankTuner

__all__ = ["TokenBank", "TokenBankConfig", "TokenBankEmbedding", "TokenBankModel", "TokenBankTuner"]

register("tpt", TokenBankConfig, TokenBankModel, TokenBankTuner)
