"""Hugging Face Trainer: a small model made from its configuration, with an evaluation after each epoch."""

from samples import Tokens
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

if __name__ == "__main__":
    config = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=32
    )
    args = TrainingArguments(
        output_dir="transformers",
        per_device_train_batch_size=16,
        per_device_eval_batch_size=32,
        num_train_epochs=1000,
        eval_strategy="epoch",
        dataloader_num_workers=1,
        dataloader_prefetch_factor=4,
        dataloader_persistent_workers=True,
        dataloader_pin_memory=False,
        use_cpu=True,
        report_to="none",
    )
    trainer = Trainer(model=BertForSequenceClassification(config), args=args, train_dataset=Tokens(), eval_dataset=Tokens())
    trainer.train()
