"""What each shape of zeros costs in accuracy and gains in size and speed: MiniLM fine-tuned on SST-2.

``python -m sparseticket.bench.shapes --data DIR/glue/SST-2 --seed 0`` trains, exports and measures; it resumes.
``python -m sparseticket.bench.shapes.table`` writes the table from the JSON of every seed.
"""
