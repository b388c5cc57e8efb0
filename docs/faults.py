"""What can go wrong, and what happens then: the rows of the table in docs/reliability.md, by their number.

The tests of each row are found by their marker, `@pytest.mark.fault("D1")`; see fault_table.py.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One way to go wrong.

    >>> Fault("An empty prompt.", "Refused, naming row and field.")
    """

    what: str
    happens: str


SECTIONS = {
    "D": "Data",
    "C": "Configuration",
    "M": "Model",
    "R": "Rewards and text that a model wrote",
    "P": "Process and disk",
    "N": "Numbers",
    "X": "Several processes",
    "W": "Pages in a browser",
}
"""By the letter of a row's number, in order."""

FAULTS: dict[str, Fault] = {
    # --- data ---
    "D1": Fault(
        "Invalid JSON, a file cut off in its last line, a byte order mark, UTF-16, NUL bytes, half a surrogate pair.",
        "Refused, naming file, line and column; a cut-off last line has a message of its own. A byte order mark is "
        "passed over.",
    ),
    "D2": Fault(
        "A column that is missing or misspelt.",
        "Refused, listing the columns found and the nearest match.",
    ),
    "D3": Fault(
        "null, a number or a list where text belongs; an empty prompt or answer.",
        "Refused, naming row, field and what was found.",
    ),
    "D4": Fault(
        "Unknown roles, two system turns, an assistant first, no messages, a user last.",
        "Refused, naming row and turn.",
    ),
    "D5": Fault(
        "A preference between two equal completions, a pair without a margin where margins are read.",
        "Refused, naming the row; with `on_bad: skip` the row is left out, counted and listed.",
    ),
    "D6": Fault(
        "A prompt that fills `max_length`, so that no token is trained.",
        "Such rows are counted and named before training, with the trained tokens per row; none left: refused.",
    ),
    "D7": Fault(
        "An end of sequence that is never trained: padding with the end token, several end tokens.",
        "Every completion ends in exactly one end token and is trained on it, and sampling stops there; a tokenizer "
        "without one is refused, and so are data of which every completion is cut off before it.",
    ),
    "D8": Fault(
        "Two beginning-of-sequence tokens, or none where the model expects one.",
        "There is exactly the tokenizer's own beginning; a template or a text that brings a second one is refused.",
    ),
    "D9": Fault(
        "Tokens of prompt and completion together that are not those of the prompt and of the completion.",
        "A boundary is forced there, so that training rows are rows that sampling produces; the report counts these "
        "rows and shows the first.",
    ),
    "D10": Fault(
        "A chat template that is missing, fails, or is not the one of the last stage.",
        "Refused, naming row and template line; the template's hash is stored in the run, and another one is refused.",
    ),
    "D11": Fault(
        "Names of special tokens in a user's text.",
        "They are plain text, broken at a forced boundary, and counted.",
    ),
    "D12": Fault(
        "Rows or ids twice; held-out rows that are trained on.",
        "Counted, with the first rows; held-out rows that are in the training data are refused unless they are to be "
        "left out.",
    ),
    "D13": Fault(
        "Rows of many megabytes, JSON of 10⁵ levels, NaN and Infinity, huge integers, keys twice.",
        "Refused in bounded time and memory, naming the row; a row may have 8 MiB.",
    ),
    "D14": Fault(
        "A data file that has changed since the run began.",
        "Resuming is refused, naming the file and both hashes.",
    ),
    "D15": Fault(
        "An archive with paths that lead outside, links, devices, or a bomb.",
        "No archive is ever opened: it is refused by name, and nothing is written.",
    ),
    "D16": Fault(
        "A dataset with a loading script, a pickle, an Arrow extension type.",
        "Never executed: refused, naming it and the formats that load.",
    ),
    # --- configuration ---
    "C1": Fault(
        "Unknown keys, wrong types and ranges, NaN and infinity, YAML's `no` for text.",
        "All errors at once, each with key, value, what is allowed and the nearest key, before torch is imported.",
    ),
    "C2": Fault(
        "Settings that contradict each other: a group of one with a baseline of the group, more minibatches than "
        "groups, the reference refreshed where none is read.",
        "Refused, one sentence for each with the numbers.",
    ),
    "C3": Fault(
        "Rewards that are all equal, or answers that are all cut off, so that nothing can be learnt.",
        "An alarm at the first step; after several such steps the run stops, naming the cause.",
    ),
    "C4": Fault(
        "A run that is resumed with other settings.",
        "Every difference is listed; those that change results are refused.",
    ),
    "C5": Fault(
        "A run directory that cannot be made or written, a disk nearly full, a finished run.",
        "Seen before the model is loaded: refused with the bytes needed and free; a finished run says so.",
    ),
    # --- model ---
    "M1": Fault(
        "Truncated or corrupt weights, a missing shard, wrong dtypes and shapes, missing tensors, a Git LFS pointer.",
        "Refused, naming file and tensor, what was found and what was expected.",
    ),
    "M2": Fault(
        "Pickled weights, `auto_map`, attention kernels by name, code in the repository.",
        "Never executed. The message says what would run, and how pickled weights can be allowed; code beside a known "
        "kind of model is not looked at.",
    ),
    "M3": Fault(
        "A tokenizer with more tokens than the model has embeddings; no padding token.",
        "Refused with both sizes. Nothing is padded with a token, so none is needed.",
    ),
    "M4": Fault(
        "NaN or infinity in the weights; an output layer that is all zeros or was never trained.",
        "Refused, naming the tensor; a new head is announced.",
    ),
    "M5": Fault(
        "A chat template that loops, allocates or reaches for attributes.",
        "It runs in a sandbox with limits on time, memory and length, and takes no powers; the message names row and "
        "template line. Other single operations that take long are not interrupted.",
    ),
    "M6": Fault(
        "Dropout in the reference or in scoring.",
        "Dropout is switched off in every model; the ratio of a first update is exactly 1.",
    ),
    # --- rewards ---
    "R1": Fault(
        "A reward that raises on a sample.",
        "That sample is masked from its group and counted; prompt, completion and traceback are kept in a file; above "
        "a share of failures the run stops.",
    ),
    "R2": Fault(
        "A reward that is NaN, infinite, text, a truth value, a tensor, 1e30; None.",
        "The sample is masked and the value named; None says that the reward does not apply. Neither is ever a 0.",
    ),
    "R3": Fault(
        "Rewards of the wrong number or in another order.",
        "Refused; the first completions are scored in two orders.",
    ),
    "R4": Fault(
        "A reward that hangs.",
        "It runs in a process of its own, which is killed at the time limit; the other samples keep their scores.",
    ),
    "R5": Fault(
        "A fork bomb, huge allocations and outputs, closed files, exits, crashes, signals.",
        "Limits hold it; the sample fails and training goes on.",
    ),
    "R6": Fault(
        "A reward that reads secrets, opens sockets, writes elsewhere.",
        "Model-written code has no network, an empty environment and a read-only view; its result comes over a channel "
        "that it cannot write.",
    ),
    "R7": Fault(
        "A completion that is code for the grader.",
        "Text of a model is never evaluated.",
    ),
    "R8": Fault(
        "A sample that changes the grader for later ones.",
        "Code of a model runs in a fresh process each time. Of a reward function the first completions are scored "
        "again every 20 calls: another score is said, and samplewise functions are started anew.",
    ),
    "R9": Fault(
        "A reward that is not deterministic.",
        "The first completions are scored twice, and again every 20 calls; a difference is said and recorded.",
    ),
    "R10": Fault(
        "A reward server that is slow, fails, or answers something else.",
        "Length, form and the question's id are checked, and it is asked again a bounded number of times; then the "
        "sample fails, and is never 0.",
    ),
    "R11": Fault(
        "Answers that were cut off, taken for finished ones.",
        "How an answer ended is carried as data, and the loss divides by the tokens that it sums over.",
    ),
    # --- process and disk ---
    "P1": Fault("SIGKILL at any moment.", "The same command continues the run, to the same bits."),
    "P2": Fault(
        "SIGKILL while a checkpoint is written, renamed or removed.",
        "The newest complete checkpoint is used; a partial one is removed, and said.",
    ),
    "P3": Fault(
        "SIGTERM or SIGINT, once, twice, during a save.",
        "The run saves at the next safe point, and its exit code says that it can be resumed.",
    ),
    "P4": Fault(
        "A full disk or an I/O error at any write.",
        "Older checkpoints stay whole and nothing half-written stays; the message says how many bytes are needed, and "
        "the same command goes on.",
    ),
    "P5": Fault(
        "Loss of power: what was not synced is gone.",
        "Files are synced before the rename and the directory after it; after every prefix of a save a whole "
        "checkpoint is found.",
    ),
    "P6": Fault(
        "A bit flip or truncation in a checkpoint.",
        "A checksum names the file, of the manifest too; the checkpoint before it is used, and that is said.",
    ),
    "P7": Fault(
        "Two processes in one run directory; a lock that was left behind.",
        "The second one stops at once, naming process, host and start; a stale lock is taken over.",
    ),
    "P8": Fault(
        "Out of memory in training.",
        "The message has the micro-batch's rows, tokens and longest row, and the settings that help; on disk is the "
        "last good step.",
    ),
    "P9": Fault(
        "A moved run, another working directory, a home that cannot be written, a full temporary folder, no network, "
        "no terminal, a clock that jumps.",
        "It works; paths in a run are relative.",
    ),
    "P10": Fault("Standard output is closed, as by `| head`; the terminal goes away.", "Training goes on."),
    # --- numbers ---
    "N1": Fault(
        "NaN or infinity in logits, loss, gradient, reward, advantage, KL or optimizer.",
        "The run stops before the update, naming step, rows and tensor; the last good checkpoint is kept.",
    ),
    "N2": Fault(
        "A result that changes with batch size, padding, packing or accumulation.",
        "Equal up to the rounding of sums in another order.",
    ),
    "N3": Fault(
        "Log-probs of sampler and trainer that differ.",
        "The gap is recorded at each step; above a limit the run stops.",
    ),
    "N4": Fault(
        "A micro-batch without loss, answers of one token, equal rewards, a group of one.",
        "The gradient is 0 and finite; such groups are counted.",
    ),
    "N5": Fault(
        "Divergence: KL or length explode, entropy collapses, the reward rises while a held-out one falls.",
        "Alarms with names, causes and default limits.",
    ),
    "N6": Fault(
        "A resumed run with another learning rate, KL factor, normaliser, baseline or data position.",
        "All of it is in the checkpoint; the first resumed step is the uninterrupted one's.",
    ),
    # --- several processes ---
    "X1": Fault(
        "One of several processes dies, raises or hangs.",
        "All end within 30 seconds, naming it and its error; the same command continues to the same bits. A reward "
        "that hangs is ended at its own limit.",
    ),
    "X2": Fault(
        "Processes with different settings, data, seeds, library versions or numbers of threads.",
        "Refused before the first step, naming what differs and in which two.",
    ),
    "X3": Fault(
        "Uneven batches, fewer prompts than processes, NaN in one process, a full disk in one.",
        "All processes take the same decision, and stop with the same message.",
    ),
    "X4": Fault(
        "Resuming with another number of processes.",
        "Refused, with both numbers; with `distributed.elastic: true` it goes on, equal up to rounding, and says so.",
    ),
    "X5": Fault(
        "A rollout worker that dies, a rollout that never returns, a step that is short of completions.",
        "Completions are sampled by the training processes themselves, so that losing one is X1; losing a reward "
        "process is R4 and R5. Every step has the same completions on one, two and three processes.",
    ),
    # --- pages in a browser ---
    "W1": Fault(
        "Two people get the same item; two tabs; a stale form.",
        "An item is kept for who looks at it. A label from any other form is refused and not saved, and the page says "
        "who has labelled it.",
    ),
    "W2": Fault(
        "A double click, a request sent again after a timeout, a replayed one.",
        "Each answer has a key: the same key is the same label. The second click of a double click, and a key that is "
        "held, do not answer what has come up meanwhile.",
    ),
    "W3": Fault(
        "The server is killed while people label; a full disk.",
        "Every label that was acknowledged is on disk, synced before the reply; of any other the page says that it is "
        "not saved.",
    ),
    "W4": Fault(
        "Text of a model with scripts, event handlers, `javascript:` links, SVG, HTML in Markdown, control characters, "
        "marks of direction, TeX macros.",
        "It is text: nothing reads HTML, links lead nowhere, invisible characters are shown by number. A content "
        "policy without inline script, and trusted types, stand behind that.",
    ),
    "W5": Fault(
        "Requests from pages elsewhere: any method, forms, JSON sent as text, WebSockets.",
        "Refused without an effect: token, origin, fetch metadata, JSON and a second secret are checked on every "
        "method.",
    ),
    "W6": Fault(
        "A name elsewhere that points at this machine; other addresses of it; other programs on it.",
        "It listens on 127.0.0.1, answers to three names with its port, and asks for a random token even there.",
    ),
    "W7": Fault(
        "A body of a gigabyte, a head that never ends or never comes, thousands of connections, deep JSON.",
        "Refused, in bounded time and memory; the process that trains is another one.",
    ),
    "W8": Fault(
        "Paths that lead outside; cells that a spreadsheet takes for formulas.",
        "Not found; every cell is quoted, and such a one begins with an apostrophe.",
    ),
    "W9": Fault(
        "A label that was made of other texts than those of the file now.",
        "Items are known by the hashes of their texts, never by their place; a label keeps those hashes, and is not "
        "exported with other texts.",
    ),
}
