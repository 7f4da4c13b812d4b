import java.nio.file.Path;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Produced;

/**
 * What the bench {@code hops} stands beside: Kafka Streams, exactly once, handing each record from topic to topic as it is.
 *
 * <p>Arguments: brokers, application id, codec of what it writes, directory for its state, threads, then the topics in path order. Prints {@code running} when its
 * tasks are assigned, and ends when standard input does.
 */
public final class KafkaStreamsHops {
    public static void main(String[] args) throws Exception {
        Properties settings = new Properties();
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, args[0]);
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, args[1]);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, Path.of(args[3]).toString());
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, Integer.parseInt(args[4]));
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        settings.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
        settings.put(StreamsConfig.consumerPrefix("auto.offset.reset"), "earliest");
        settings.put(StreamsConfig.producerPrefix("compression.type"), args[2]);
        settings.put(StreamsConfig.producerPrefix("compression.zstd.level"), 1);

        StreamsBuilder hops = new StreamsBuilder();
        for (int to = 6; to < args.length; to++) {
            hops.stream(args[to - 1], Consumed.with(Serdes.ByteArray(), Serdes.ByteArray()))
                .mapValues(value -> value)
                .to(args[to], Produced.with(Serdes.ByteArray(), Serdes.ByteArray()));
        }
        CountDownLatch running = new CountDownLatch(1);
        try (KafkaStreams streams = new KafkaStreams(hops.build(), settings)) {
            streams.setStateListener((now, before) -> {
                if (now == KafkaStreams.State.RUNNING) {
                    running.countDown();
                }
            });
            streams.start();
            running.await();
            System.out.println("running");
            while (System.in.read() >= 0) {
                // Whoever started it closes its input when the bench is over.
            }
        }
    }
}
