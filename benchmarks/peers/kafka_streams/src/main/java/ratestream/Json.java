package ratestream;

import com.fasterxml.jackson.core.JsonGenerator;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.ObjectReader;
import com.fasterxml.jackson.databind.ObjectWriter;
import com.fasterxml.jackson.module.blackbird.BlackbirdModule;
import java.io.IOException;
import java.io.UncheckedIOException;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.Serializer;

/** JSON through Jackson's data binding, with readers and writers that are made once for each type. */
final class Json {
    private static final ObjectMapper MAPPER =
            new ObjectMapper()
                    .registerModule(new BlackbirdModule())
                    .disable(DeserializationFeature.FAIL_ON_UNKNOWN_PROPERTIES)
                    .enable(JsonGenerator.Feature.WRITE_BIGDECIMAL_AS_PLAIN);

    private Json() {}

    static <T> Serde<T> serde(Class<T> type) {
        return Serdes.serdeFrom(serializer(type), deserializer(type));
    }

    static <T> Serializer<T> serializer(Class<T> type) {
        ObjectWriter writer = MAPPER.writerFor(type);
        return (topic, value) -> {
            try {
                return value == null ? null : writer.writeValueAsBytes(value);
            } catch (JsonProcessingException error) {
                throw new UncheckedIOException(error);
            }
        };
    }

    static <T> Deserializer<T> deserializer(Class<T> type) {
        ObjectReader reader = MAPPER.readerFor(type);
        return (topic, data) -> {
            try {
                return data == null ? null : reader.readValue(data);
            } catch (IOException error) {
                throw new UncheckedIOException(error);
            }
        };
    }
}
