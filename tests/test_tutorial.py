"""TensorFlow Federated's compression tutorial, as it was written, on today's TFF.

Changed are its imports, the names in the README's table of renames (`tff_kit.` in front of what TFF removed),
and where TFF 0.87 itself moved things: the model's constructor and the place of the training metrics. The data is the
tutorial's loader on a cache of ten of the developers' writers, and fewer rounds are trained.
"""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

import tff_kit
from tff_kit import runtime

MAX_CLIENT_DATASET_SIZE = 418
CLIENT_EPOCHS_PER_ROUND = 1
CLIENT_BATCH_SIZE = 20


def reshape_emnist_element(element):
    return (tf.expand_dims(element['pixels'], axis=-1), element['label'])


def preprocess_train_dataset(dataset):
    """Preprocessing function for the EMNIST training dataset."""
    return (dataset
            # Shuffle according to the largest client dataset
            .shuffle(buffer_size=MAX_CLIENT_DATASET_SIZE)
            # Repeat to do multiple local epochs
            .repeat(CLIENT_EPOCHS_PER_ROUND)
            # Batch to a fixed client batch size
            .batch(CLIENT_BATCH_SIZE, drop_remainder=False)
            # Preprocessing step
            .map(reshape_emnist_element))


def create_original_fedavg_cnn_model(only_digits=True):
    """The CNN model used in https://arxiv.org/abs/1602.05629."""
    data_format = 'channels_last'

    max_pool = functools.partial(
        tf.keras.layers.MaxPooling2D,
        pool_size=(2, 2),
        padding='same',
        data_format=data_format)
    conv2d = functools.partial(
        tf.keras.layers.Conv2D,
        kernel_size=5,
        padding='same',
        data_format=data_format,
        activation=tf.nn.relu)

    model = tf.keras.models.Sequential([
        tf.keras.layers.InputLayer(input_shape=(28, 28, 1)),
        conv2d(filters=32),
        max_pool(),
        conv2d(filters=64),
        max_pool(),
        tf.keras.layers.Flatten(),
        tf.keras.layers.Dense(512, activation=tf.nn.relu),
        tf.keras.layers.Dense(10 if only_digits else 62),
        tf.keras.layers.Softmax(),
    ])

    return model


def broadcast_encoder_fn(value):
    """Function for building encoded broadcast."""
    spec = tf.TensorSpec(value.shape, value.dtype)
    if value.shape.num_elements() > 10000:
        return te.encoders.as_simple_encoder(
            te.encoders.uniform_quantization(bits=8), spec)
    else:
        return te.encoders.as_simple_encoder(te.encoders.identity(), spec)


def mean_encoder_fn(value):
    """Function for building encoded mean."""
    spec = tf.TensorSpec(value.shape, value.dtype)
    if value.shape.num_elements() > 10000:
        return te.encoders.as_gather_encoder(
            te.encoders.uniform_quantization(bits=8), spec)
    else:
        return te.encoders.as_gather_encoder(te.encoders.identity(), spec)


@pytest.fixture(autouse=True)
def _restore_context():
    yield
    runtime.set_default_context()


@pytest.mark.slow
def test_tutorial(cache_of_writers, tmp_path, capsys):
    emnist_train, _ = tff.simulation.datasets.emnist.load_data(
        only_digits=True, cache_dir=str(cache_of_writers(10)))
    emnist_train = emnist_train.preprocess(preprocess_train_dataset)

    input_spec = emnist_train.create_tf_dataset_for_client(
        emnist_train.client_ids[0]).element_spec

    def tff_model_fn():
        keras_model = create_original_fedavg_cnn_model()
        return tff.learning.models.from_keras_model(
            keras_model=keras_model,
            input_spec=input_spec,
            loss=tf.keras.losses.SparseCategoricalCrossentropy(),
            metrics=[tf.keras.metrics.SparseCategoricalAccuracy()])

    federated_averaging = tff_kit.build_federated_averaging_process(
        model_fn=tff_model_fn,
        client_optimizer_fn=lambda: tf.keras.optimizers.SGD(learning_rate=0.02),
        server_optimizer_fn=lambda: tf.keras.optimizers.SGD(learning_rate=1.0))

    def train(federated_averaging_process, num_rounds, num_clients_per_round, summary_writer):
        """Trains the federated averaging process and output metrics."""
        # Create a environment to get communication cost.
        environment = tff_kit.set_sizing_environment()

        # Initialize the Federated Averaging algorithm to get the initial server state.
        state = federated_averaging_process.initialize()

        with summary_writer.as_default():
            for round_num in range(num_rounds):
                # Sample the clients parcitipated in this round.
                sampled_clients = np.random.choice(
                    emnist_train.client_ids,
                    size=num_clients_per_round,
                    replace=False)
                # Create a list of `tf.Dataset` instances from the data of sampled clients.
                sampled_train_data = [
                    emnist_train.create_tf_dataset_for_client(client)
                    for client in sampled_clients
                ]
                # Round one round of the algorithm based on the server state and client data
                # and output the new state and metrics.
                state, metrics = federated_averaging_process.next(state, sampled_train_data)

                size_info = environment.get_size_info()
                broadcasted_bits = size_info.broadcast_bits[-1]
                aggregated_bits = size_info.aggregate_bits[-1]

                print('round {:2d}, metrics={}, broadcasted_bits={}, aggregated_bits={}'.format(
                    round_num, metrics, tff_kit.format_size(broadcasted_bits), tff_kit.format_size(aggregated_bits)))

                # Add metrics to Tensorboard.
                for name, value in metrics['client_work']['train'].items():
                    tf.summary.scalar(name, value, step=round_num)

                # Add broadcasted and aggregated data size to Tensorboard.
                tf.summary.scalar('cumulative_broadcasted_bits', broadcasted_bits, step=round_num)
                tf.summary.scalar('cumulative_aggregated_bits', aggregated_bits, step=round_num)
                summary_writer.flush()

    train(federated_averaging_process=federated_averaging, num_rounds=2,
          num_clients_per_round=10,
          summary_writer=tf.summary.create_file_writer(str(tmp_path / "original")))
    plain = capsys.readouterr().out

    encoded_broadcast_process = (
        tff_kit.build_encoded_broadcast_process_from_model(
            tff_model_fn, broadcast_encoder_fn))
    encoded_mean_process = (
        tff_kit.build_encoded_mean_process_from_model(
            tff_model_fn, mean_encoder_fn))

    federated_averaging_with_compression = tff_kit.build_federated_averaging_process(
        tff_model_fn,
        client_optimizer_fn=lambda: tf.keras.optimizers.SGD(learning_rate=0.02),
        server_optimizer_fn=lambda: tf.keras.optimizers.SGD(learning_rate=1.0),
        broadcast_process=encoded_broadcast_process,
        aggregation_process=encoded_mean_process)

    train(federated_averaging_process=federated_averaging_with_compression,
          num_rounds=2,
          num_clients_per_round=10,
          summary_writer=tf.summary.create_file_writer(str(tmp_path / "compression")))
    compressed = capsys.readouterr().out

    # What the tutorial printed for its first two rounds (it called Mibit MiB).
    assert 'broadcasted_bits=507.62 Mibit, aggregated_bits=507.6' in plain
    assert 'broadcasted_bits=1015.24 Mibit, aggregated_bits=1015.2' in plain
    assert 'broadcasted_bits=146.46 Mibit, aggregated_bits=146.4' in compressed
    assert 'broadcasted_bits=292.92 Mibit, aggregated_bits=292.9' in compressed
    assert all(list((tmp_path / run).glob("events*")) for run in ("original", "compression"))
