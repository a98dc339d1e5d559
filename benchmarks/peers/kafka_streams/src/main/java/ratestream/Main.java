package ratestream;

import java.math.BigDecimal;
import java.util.Arrays;
import java.util.Map;
import java.util.Properties;
import java.util.stream.Collectors;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.Serializer;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.processor.api.ContextualProcessor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.Stores;
import ratestream.Messages.Average;
import ratestream.Messages.Quote;
import ratestream.Messages.Snapshot;

/**
 * Kafka Streams, one thread, with the Processor API, so that every average is forwarded and not
 * only the last one before a commit. The store is RocksDB behind Kafka Streams' own cache, which
 * has room for all windows, with a changelog. -Dstate says how a window is kept: json or binary.
 *
 * <p>Settings beside the defaults are those that its documentation names for throughput: a commit
 * each 100 ms as ratestream's, a larger cache, more records a poll and in its buffers, larger
 * fetches and batches, lz4.
 */
public final class Main {
    private static final Serializer<String> TEXT = Serdes.String().serializer();
    private static final Deserializer<String> FROM_TEXT = Serdes.String().deserializer();

    private Main() {}

    public static void main(String[] arguments) {
        Map<String, String> given =
                Arrays.stream(arguments)
                        .filter(each -> each.startsWith("--"))
                        .map(each -> each.substring(2).split("=", 2))
                        .collect(Collectors.toMap(each -> each[0], each -> each[1]));
        String job = arguments[arguments.length - 1];
        Topology topology = job.equals("stateful") ? stateful(given) : stateless(given);
        KafkaStreams streams = new KafkaStreams(topology, settings(given));
        Runtime.getRuntime().addShutdownHook(new Thread(streams::close));
        streams.start();
    }

    private static Properties settings(Map<String, String> given) {
        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, given.get("group"));
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, given.get("bootstrap"));
        settings.put(StreamsConfig.STATE_DIR_CONFIG, given.get("data-dir"));
        settings.put(
                StreamsConfig.PROCESSING_GUARANTEE_CONFIG,
                given.get("guarantee").equals("exactly_once")
                        ? StreamsConfig.EXACTLY_ONCE_V2
                        : StreamsConfig.AT_LEAST_ONCE);
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 1);
        settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 100);
        settings.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 256L << 20);
        settings.put(StreamsConfig.BUFFERED_RECORDS_PER_PARTITION_CONFIG, 10_000);
        settings.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
        settings.put(StreamsConfig.METRICS_RECORDING_LEVEL_CONFIG, "INFO");
        settings.put(consumer(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
        settings.put(consumer(ConsumerConfig.MAX_POLL_RECORDS_CONFIG), 10_000);
        settings.put(consumer(ConsumerConfig.MAX_PARTITION_FETCH_BYTES_CONFIG), 4 << 20);
        settings.put(producer(ProducerConfig.BATCH_SIZE_CONFIG), 256 << 10);
        settings.put(producer(ProducerConfig.LINGER_MS_CONFIG), 20);
        settings.put(producer(ProducerConfig.BUFFER_MEMORY_CONFIG), 128L << 20);
        settings.put(producer(ProducerConfig.COMPRESSION_TYPE_CONFIG), "lz4");
        return settings;
    }

    private static String consumer(String name) {
        return StreamsConfig.consumerPrefix(name);
    }

    private static String producer(String name) {
        return StreamsConfig.producerPrefix(name);
    }

    private static Topology stateful(Map<String, String> given) {
        Serde<BigDecimal[]> windows =
                System.getProperty("state", "json").equals("binary")
                        ? Windows.binary()
                        : Windows.json();
        return new Topology()
                .addSource("in", FROM_TEXT, Json.deserializer(Quote.class), given.get("input"))
                .addProcessor("average", Averages::new, "in")
                .addStateStore(
                        Stores.keyValueStoreBuilder(
                                        Stores.persistentKeyValueStore("windows"),
                                        Serdes.String(),
                                        windows)
                                .withCachingEnabled()
                                .withLoggingEnabled(Map.of()),
                        "average")
                .addSink("out", given.get("output"), TEXT, Json.serializer(Average.class), "average");
    }

    private static Topology stateless(Map<String, String> given) {
        return new Topology()
                .addSource("in", FROM_TEXT, Json.deserializer(Snapshot.class), given.get("input"))
                .addProcessor("split", Splits::new, "in")
                .addSink("out", given.get("output"), TEXT, Json.serializer(Quote.class), "split");
    }

    private static final class Averages extends ContextualProcessor<String, Quote, String, Average> {
        private KeyValueStore<String, BigDecimal[]> windows;

        @Override
        public void init(ProcessorContext<String, Average> context) {
            super.init(context);
            windows = context.getStateStore("windows");
        }

        @Override
        public void process(Record<String, Quote> record) {
            Quote quote = record.value();
            BigDecimal[] window = Windows.push(windows.get(quote.pair()), quote.price());
            windows.put(quote.pair(), window);
            Average average =
                    new Average(
                            quote.pair(),
                            quote.source(),
                            Windows.mean(window),
                            window.length,
                            quote.observed_at(),
                            quote.received_at());
            context().forward(record.withValue(average));
        }
    }

    private static final class Splits extends ContextualProcessor<String, Snapshot, String, Quote> {
        @Override
        public void process(Record<String, Snapshot> record) {
            Snapshot snapshot = record.value();
            snapshot.rates()
                    .forEach(
                            (pair, price) ->
                                    context()
                                            .forward(
                                                    record.withKey(pair)
                                                            .withValue(
                                                                    quote(snapshot, pair, price))));
        }

        private static Quote quote(Snapshot snapshot, String pair, BigDecimal price) {
            return new Quote(
                    pair,
                    snapshot.source(),
                    price,
                    snapshot.observed_at(),
                    snapshot.received_at());
        }
    }
}
